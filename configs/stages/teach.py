"""What a teacher says of the batches of `distil.py` (or, with _decay behind the size, of `distil_decay.py`), stored: its 32 likeliest tokens at each position with loss.

  python -m bluelm_jax.train --config=configs/stages/teach.py:miniature --workdir=/tmp/taught --config.distill.teacher=/tmp/teacher
  python -m bluelm_jax.train --config=configs/stages/distil.py:miniature --workdir=/tmp/distil \
      --config.init_from=/tmp/pruned --config.distill.stored=/tmp/taught

Whatever changes a student's batches changes a store: seed, sources, rows, length. With a ramp of data.accumulate, steps is
the number of all its batches. A position takes 2 + 32 * (2 + 4) = 194 bytes of disk for a vocabulary beyond 65,536 (of the
miniature 130), so that the 3 T tokens of bluelm_2_5_3b would take 582 TB, and its first 1000 batches take 1.8 TB.
"""

import pathlib

from bluelm_jax.training import defaults

SIZES = ("miniature", "miniature_decay", "bluelm_2_5_3b", "bluelm_2_5_3b_decay")


def get_config(size: str = "miniature"):
  if size not in SIZES:
    raise ValueError(f"size {size!r} is unknown; use {', '.join(SIZES)}")
  size, decay = size.removesuffix("_decay"), size.endswith("_decay")
  student = defaults.load(f"{pathlib.Path(__file__).parent}/{'distil_decay' if decay else 'distil'}.py:{size}")
  c = defaults.stage()
  c.name, c.preset, c.objective = "teach", size, "teach"
  c.seed, c.data, c.loss_chunks, c.mesh = student.seed, student.data, student.loss_chunks, student.mesh
  c.distill.temperature, c.distill.top_k = student.distill.temperature, student.distill.top_k
  c.steps = student.steps
  if size == "bluelm_2_5_3b":
    c.steps = 1000
  return c
