"""A stage that goes on with other numbers of processes: 2, then 1, then 4, beside one that one process makes alone.

  python -m tests.bench.moves [steps of each]

The same examples must come in the same order, and losses be the same within 1e-5.
"""

import pathlib
import sys
import tempfile

import numpy as np

from tests.training import several

COUNTS = (2, 1, 4)


def main(steps: int) -> None:
  from bluelm_jax.training import metrics
  from tests.bench import machine

  print(f"{machine.line()}; {steps} steps each of {', '.join(map(str, COUNTS))} processes", flush=True)
  total = steps * len(COUNTS)
  with tempfile.TemporaryDirectory() as folder:
    moved, alone = (pathlib.Path(folder) / name for name in ("moved", "alone"))
    for number, processes in enumerate(COUNTS, 1):
      several.finish(several.launch({"workdir": moved, "steps": total, "stop_after": number * steps}, processes=processes))
    several.finish(several.launch({"workdir": alone, "steps": total}, processes=1))
    found, expected = (np.array([(r["loss_tokens"], r["tokens/prose"], r["loss"]) for r in metrics.read(w)]) for w in (moved, alone))
  same = int((found[:, :2] == expected[:, :2]).all(1).sum())
  apart = np.abs(found[:, 2] / expected[:, 2] - 1)
  print(f"{len(found)} steps, {same} with the same numbers of tokens; losses differ by at most {apart.max():.1e}, {int((apart == 0).sum())} not at all")
  if same != total or len(found) != total or apart.max() > 1e-5:
    sys.exit(1)


if __name__ == "__main__":
  main(int(sys.argv[1]) if len(sys.argv) > 1 else 20)
