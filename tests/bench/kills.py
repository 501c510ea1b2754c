"""SIGKILLs two processes that train one stage together, again and again; the losses must be an undisturbed run's.

  python -m tests.bench.kills [kills]

One of the two is killed, at a random moment; the other, which would wait for it, is then ended as a scheduler would.
"""

import pathlib
import random
import signal
import sys
import tempfile
import time

from tests.training import several

STEPS_A_KILL = 40  # more than are made between two kills
PATIENCE = 240.0  # seconds for two processes to make a step


def lines(workdir) -> int:
  file = pathlib.Path(workdir) / "metrics.jsonl"
  return file.read_text().count("\n") if file.exists() else 0


def await_lines(running, workdir, new: int) -> None:
  """Until the log has so many more, or a process has ended."""
  before, started = lines(workdir), time.monotonic()
  while lines(workdir) < before + new and all(p.poll() is None for p in running):
    if time.monotonic() - started > PATIENCE:
      for process in running:
        process.kill()
      raise RuntimeError("two processes made no step")
    time.sleep(0.01)


def kill(running, workdir, victim: int, new_lines: int, wait: float) -> None:
  """Kills one `wait` seconds after so many new lines of the log, then the other; raises where one had ended by itself."""
  await_lines(running, workdir, new_lines)
  time.sleep(wait)
  ended = [p.returncode for p in running if p.poll() is not None]
  for process in (running[victim], running[1 - victim]):
    process.send_signal(signal.SIGKILL)
  errors = [process.communicate()[1] for process in running]
  if ended:
    raise RuntimeError(f"ended by itself with {ended}: " + "\n\n".join(e[-1500:] for e in errors))


def main(kills: int) -> None:
  from bluelm_jax.training import goodput
  from bluelm_jax.training import metrics
  from tests.bench import machine

  rng, steps = random.Random(0), STEPS_A_KILL * kills
  print(f"{machine.line()}; {kills} kills, {steps} steps", flush=True)
  with tempfile.TemporaryDirectory() as folder:
    whole, killed = f"{folder}/whole", f"{folder}/killed"
    job = lambda workdir: {"workdir": workdir, "steps": steps, "data.rows": 2}
    for count in range(1, kills + 1):
      starting = rng.random() < 0.5  # or restoring, or compiling
      before = lines(killed)
      kill(several.launch(job(killed)), killed, rng.randrange(2), 0 if starting else rng.randint(1, 12), rng.uniform(0, 20.0 if starting else 0.3))
      print(f"kill {count}: {lines(killed) - before} steps", flush=True)
    several.finish(several.launch(job(killed), job(whole)))
    found, expected = ([(r["step"], r["loss"]) for r in metrics.read(w)] for w in (killed, whole))
    same = sum(a == b for a, b in zip(found, expected))
    print(f"{len(expected)} steps, {same} losses as the undisturbed run's; {lines(killed) - len(found)} steps made again")
    print(f"killed: {goodput.line([killed])}\nundisturbed: {goodput.line([whole])}")
  if found != expected:
    sys.exit(1)


if __name__ == "__main__":
  main(int(sys.argv[1]) if len(sys.argv) > 1 else 20)
