"""One of two hosts hangs for good, each of them under its own watcher: both must start again, and lose nothing.

The process of the second is stopped (SIGSTOP) after step 5; the first then waits for it inside a step.
"""

import subprocess
import sys
import time

from bluelm_jax.training import goodput
from bluelm_jax.training import metrics
from tests import doors
from tests.bench import machine
from tests.training import several

DEADLINE = 30  # seconds without a step after which a watcher takes its process to hang


def run(workdir, faults: str) -> list[str]:
  """What each host wrote on stderr of a recipe of two hosts, the second of which has the faults."""
  before = time.monotonic()
  command = [sys.executable, "-m", "tests.training.faulty", f"--workdir={workdir}", f"--deadline={DEADLINE}", f"--coordinator={several.free_port()}"]
  extra = [["--host=0"], ["--host=1", f"--faults={faults}"]]
  running = [subprocess.Popen([*command, *flags], cwd=doors.ROOT, env=doors.ENVIRONMENT, stderr=subprocess.PIPE, text=True) for flags in extra]
  messages = several.finish(running)
  print(f"{workdir.name}: {time.monotonic() - before:.0f} s, {goodput.line([workdir / '1-text'])}", flush=True)
  return messages


def test_both_hosts_start_again(tmp_path):
  print(f"{machine.line()}; deadline {DEADLINE} s", flush=True)
  whole, stuck = tmp_path / "whole", tmp_path / "stuck"
  assert not any("recipe: its process" in text for text in run(whole, ""))
  for text in run(stuck, "stop@5"):
    assert text.count("recipe: its process") == 1 and "s after step 5 and was killed; in 1 s it starts again" in text
  found, expected = ([(r["step"], r["loss"]) for r in metrics.read(w / "1-text")] for w in (stuck, whole))
  assert found == expected and expected
