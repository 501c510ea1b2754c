"""One of two hosts hangs for good, each of them under its own watcher: both must start again, and lose nothing.

  python -m tests.bench.stuck [deadline]     # seconds without a step after which a watcher takes its process to hang

The process of the second is stopped (SIGSTOP) after step 5; the first then waits for it inside a step.
"""

import os
import pathlib
import subprocess
import sys
import tempfile
import time

from tests.training import faulty
from tests.training import several


def run(workdir, deadline: float, faults: str) -> tuple[list[str], float]:
  """(what each host wrote on stderr, seconds) of a recipe of two hosts, the second of which has the faults."""
  before = time.monotonic()
  command = [sys.executable, "-m", "tests.training.faulty", f"--workdir={workdir}", f"--deadline={deadline}", f"--coordinator={several.free_port()}"]
  extra = [["--host=0"], ["--host=1", f"--faults={faults}"]]
  running = [
      subprocess.Popen([*command, *flags], cwd=faulty.ROOT, env={**os.environ, "XLA_FLAGS": ""}, stderr=subprocess.PIPE, text=True) for flags in extra]
  return several.finish(running), time.monotonic() - before


def main(deadline: float) -> None:
  from bluelm_jax.training import goodput
  from bluelm_jax.training import metrics
  from tests.bench import machine

  print(f"{machine.line()}; deadline {deadline:g} s", flush=True)
  with tempfile.TemporaryDirectory() as folder:
    whole, stuck = (pathlib.Path(folder) / name for name in ("whole", "stuck"))
    for workdir, faults in ((whole, ""), (stuck, "stop@5")):
      messages, seconds = run(workdir, deadline, faults)
      print(f"{workdir.name}: {seconds:.0f} s, {goodput.line([workdir / '1-text'])}")
      for host, text in enumerate(messages):
        for line in text.splitlines():
          if line.startswith("recipe: its process"):
            print(f"  host {host}: {line}")
    found, expected = ([(r["step"], r["loss"]) for r in metrics.read(w / "1-text")] for w in (stuck, whole))
    print(f"{len(expected)} steps, {sum(a == b for a, b in zip(found, expected))} losses as the undisturbed run's")
  if found != expected:
    sys.exit(1)


if __name__ == "__main__":
  main(float(sys.argv[1]) if len(sys.argv) > 1 else 20)
