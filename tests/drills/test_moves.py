"""A stage that goes on with other numbers of processes: 2, then 1, then 4, beside one that one process makes alone.

The same examples must come in the same order, and losses be the same within 1e-5.
"""

import numpy as np

from bluelm_jax.training import metrics
from tests.bench import machine
from tests.training import several

COUNTS, STEPS = (2, 1, 4), 20  # steps of each


def test_examples_are_those_of_one_process(tmp_path):
  print(f"{machine.line()}; {STEPS} steps each of {', '.join(map(str, COUNTS))} processes", flush=True)
  moved, alone, total = tmp_path / "moved", tmp_path / "alone", STEPS * len(COUNTS)
  for number, processes in enumerate(COUNTS, 1):
    several.finish(several.launch({"workdir": moved, "steps": total, "stop_after": number * STEPS}, processes=processes))
  several.finish(several.launch({"workdir": alone, "steps": total}, processes=1))
  found, expected = (np.array([(r["loss_tokens"], r["tokens/prose"], r["loss"]) for r in metrics.read(w)]) for w in (moved, alone))
  apart = np.abs(found[:, 2] / expected[:, 2] - 1)
  print(f"losses differ by at most {apart.max():.1e}, {int((apart == 0).sum())} of {len(apart)} not at all")
  assert len(found) == total and (found[:, :2] == expected[:, :2]).all() and apart.max() <= 1e-5
