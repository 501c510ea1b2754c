"""Processes that train stages together, with a device each.

  python -m tests.training.several --index=0 --processes=2 --port=PORT --jobs='[{"workdir": "DIR", "steps": 8}]'
"""

import json
import os
import socket
import subprocess
import sys

from absl import flags

from bluelm_jax import door
from bluelm_jax import process
from tests.training import faulty

_FLAGS = "--xla_backend_optimization_level=0"  # as the tests' own process has it
_INDEX = flags.DEFINE_integer("index", 0, "Of this process.")
_PROCESSES = flags.DEFINE_integer("processes", 2, "That train together.")
_PORT = flags.DEFINE_integer("port", None, "Of the first.")
_JOBS = flags.DEFINE_string("jobs", None, "Stages in a row: a list of workdir, perhaps stop_after, and what differs from `config`.")


def config(**changes):
  """A text stage whose batch divides over 1, 2, 4 and 8 devices."""
  c = faulty.config()
  c.data.rows, c.checkpoint_every = 8, 4
  c.update_from_flattened_dict(changes)
  return c


def main(argv):
  del argv
  import jax

  from bluelm_jax.training import stage

  jax.config.update("jax_num_cpu_devices", 1)
  os.environ.update(JAX_COORDINATOR_ADDRESS=f"127.0.0.1:{_PORT.value}", JAX_NUM_PROCESSES=str(_PROCESSES.value), JAX_PROCESS_ID=str(_INDEX.value))
  process.join_others()
  faulty.add_preset()
  for job in json.loads(_JOBS.value):
    workdir, stop_after = job.pop("workdir"), job.pop("stop_after", None)
    stage.run(config(**job), workdir, stop_after)


def free_port() -> int:
  with socket.socket() as s:
    s.bind(("127.0.0.1", 0))
    return s.getsockname()[1]


def launch(*jobs: dict, processes: int = 2) -> list[subprocess.Popen]:
  jobs = json.dumps([{**job, "workdir": str(job["workdir"])} for job in jobs])
  command = [sys.executable, "-m", "tests.training.several", f"--processes={processes}", f"--port={free_port()}", f"--jobs={jobs}"]
  return [
      subprocess.Popen([*command, f"--index={i}"], cwd=faulty.ROOT, env={**os.environ, "XLA_FLAGS": _FLAGS}, stderr=subprocess.PIPE, text=True)
      for i in range(processes)]


def finish(running: list[subprocess.Popen], code: int = 0) -> list[str]:
  """Waits; what each wrote on stderr. Raises with the messages of one that ended with another code."""
  messages = [process.communicate(timeout=600)[1] for process in running]
  for process, text in zip(running, messages):
    if process.returncode != code:
      raise RuntimeError(f"ended with {process.returncode}: {text[-2000:]}")
  return messages


if __name__ == "__main__":
  door.run(main, required=("jobs", "port"))
