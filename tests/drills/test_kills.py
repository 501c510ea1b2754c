"""SIGKILLs two processes that train one stage together, again and again; the losses must be an undisturbed run's.

One of the two is killed, at a random moment; the other, which would wait for it, is then ended as a scheduler would.
"""

import random

from bluelm_jax.training import goodput
from bluelm_jax.training import metrics
from tests.bench import machine
from tests.training import several

KILLS = 20
STEPS = 40 * KILLS  # more than are made between two kills


def test_kills_cost_steps_and_no_more(tmp_path):
  rng, whole, killed = random.Random(0), tmp_path / "whole", tmp_path / "killed"
  print(f"{machine.line()}; {KILLS} kills, {STEPS} steps", flush=True)
  job = lambda workdir: {"workdir": workdir, "steps": STEPS, "data.rows": 2}
  for count in range(1, KILLS + 1):
    starting = rng.random() < 0.5  # or restoring, or compiling
    before = several.lines(killed)
    several.kill(
        several.launch(job(killed)), killed, rng.randrange(2), 0 if starting else rng.randint(1, 12), rng.uniform(0, 20.0 if starting else 0.3))
    print(f"kill {count}: {several.lines(killed) - before} steps", flush=True)
  several.finish(several.launch(job(killed), job(whole)))
  found, expected = ([(r["step"], r["loss"]) for r in metrics.read(w)] for w in (killed, whole))
  print(f"{len(expected)} steps; {several.lines(killed) - len(found)} made again")
  print(f"killed: {goodput.line([killed])}\nundisturbed: {goodput.line([whole])}")
  assert found == expected and len(expected) == STEPS
