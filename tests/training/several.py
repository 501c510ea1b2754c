"""Processes that train stages together, with a device each.

  python -m tests.training.several --index=0 --processes=2 --port=PORT --jobs='[{"workdir": "DIR", "steps": 8}]'
"""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

from absl import flags

from bluelm_jax import door
from bluelm_jax import process
from tests import doors
from tests.training import faulty

PATIENCE = 240.0  # seconds for processes to make a step
_INDEX = flags.DEFINE_integer("index", 0, "Of this process.")
_PROCESSES = flags.DEFINE_integer("processes", 2, "That train together.")
_PORT = flags.DEFINE_integer("port", None, "Of the first.")
_JOBS = flags.DEFINE_string("jobs", None, "Stages in a row: a list of workdir, perhaps stop_after, batches to spoil, and what differs from `config`.")


def config(**changes):
  """A text stage whose batch divides over 1, 2, 4 and 8 devices."""
  c = faulty.config()
  c.data.rows, c.checkpoint_every = 8, 4
  c.update_from_flattened_dict(changes)
  return c


def main(argv):
  del argv
  import jax

  from bluelm_jax.data import pack
  from bluelm_jax.training import stage
  from tests.training import programs
  from tests.training import spoiling

  jax.config.update("jax_num_cpu_devices", 1)
  os.environ.update(JAX_COORDINATOR_ADDRESS=f"127.0.0.1:{_PORT.value}", JAX_NUM_PROCESSES=str(_PROCESSES.value), JAX_PROCESS_ID=str(_INDEX.value))
  process.join_others()
  faulty.add_preset()
  programs.remember_all(setattr)
  spoilt = set()
  pack.PackIterator = spoiling.iterator(spoilt)
  for job in json.loads(_JOBS.value):
    workdir, stop_after = job.pop("workdir"), job.pop("stop_after", None)
    spoilt.clear()
    spoilt.update(job.pop("spoil", ()))
    stage.run(config(**job), workdir, stop_after)


def free_port() -> int:
  with socket.socket() as s:
    s.bind(("127.0.0.1", 0))
    return s.getsockname()[1]


def launch(*jobs: dict, processes: int = 2, module: str = "tests.training.several") -> list[subprocess.Popen]:
  jobs = json.dumps([{**job, "workdir": str(job["workdir"])} for job in jobs])
  command = [sys.executable, "-m", module, f"--processes={processes}", f"--port={free_port()}", f"--jobs={jobs}"]
  return [
      subprocess.Popen([*command, f"--index={i}"], cwd=doors.ROOT, env=doors.ENVIRONMENT, stderr=subprocess.PIPE, text=True)
      for i in range(processes)]


def finish(running: list[subprocess.Popen], code: int = 0) -> list[str]:
  """Waits; what each wrote on stderr. Raises with the messages of one that ended with another code."""
  messages = [process.communicate(timeout=600)[1] for process in running]
  for process, text in zip(running, messages):
    if process.returncode != code:
      raise RuntimeError(f"ended with {process.returncode}: {text[-2000:]}")
  return messages


def lines(workdir) -> int:
  file = pathlib.Path(workdir) / "metrics.jsonl"
  return file.read_text().count("\n") if file.exists() else 0


def await_lines(running: list[subprocess.Popen], workdir, new: int) -> None:
  """Until the log has so many more, or a process has ended."""
  before, started = lines(workdir), time.monotonic()
  while lines(workdir) < before + new and all(p.poll() is None for p in running):
    if time.monotonic() - started > PATIENCE:
      for process in running:
        process.kill()
      raise RuntimeError("the processes made no step")
    time.sleep(0.01)


def kill(running: list[subprocess.Popen], workdir, victim: int, new_lines: int, wait: float) -> None:
  """Kills one of two `wait` seconds after so many new lines of the log, then the other; raises where one had ended by itself."""
  await_lines(running, workdir, new_lines)
  time.sleep(wait)
  ended = [p.returncode for p in running if p.poll() is not None]
  for process in (running[victim], running[1 - victim]):
    process.send_signal(signal.SIGKILL)
  errors = [process.communicate()[1] for process in running]
  if ended:
    raise RuntimeError(f"ended by itself with {ended}: " + "\n\n".join(e[-1500:] for e in errors))


if __name__ == "__main__":
  door.run(main, required=("jobs", "port"))
