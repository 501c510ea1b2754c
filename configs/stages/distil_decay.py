"""Fast decay under the teacher: the learning rate of `distil.py` falls to nothing, on more reasoning.

  python -m bluelm_jax.train --config=configs/stages/distil_decay.py:miniature --workdir=/tmp/decay \
      --config.init_from=/tmp/distil --config.distill.teacher=/tmp/teacher

Of BlueLM-2.5-3B's fast decay with distillation 300 B tokens are published; the straight line to zero and the mixture
are ours.
"""

import pathlib

from bluelm_jax.training import defaults

SIZES = ("miniature", "bluelm_2_5_3b")


def get_config(size: str = "miniature"):
  c = defaults.load(f"{pathlib.Path(__file__).parent}/distil.py:{size}")
  c.name = "distil_decay"
  c.steps = 31_790 if size == "bluelm_2_5_3b" else 60  # 300 B tokens
  c.schedule.kind, c.schedule.warmup, c.schedule.final = "linear", 0, 0.0
  if size == "miniature":
    c.data.sources.prose.share, c.data.sources.reasoning.share = 0.3, 0.7
  return c
