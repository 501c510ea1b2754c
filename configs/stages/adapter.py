"""Adapter alignment: captions and element lists of screens, vision tower and language model frozen.

  python -m bluelm_jax.train --config=configs/stages/adapter.py:miniature --workdir=/tmp/adapter --config.init_from=/tmp/text
"""

from bluelm_jax.training import defaults


def get_config(size: str = "miniature"):
  c = defaults.stage()
  c.name, c.preset = "adapter", size
  c.data.rows, c.data.length, c.data.tile_slots = 4, 384, 8
  c.steps = 40
  if size == "small":
    c.data.rows, c.data.length, c.data.tile_slots = 32, 1024, 296
    c.data.workers, c.steps = 12, 50
  c.trainable = ("adapter/.*",)
  c.optimizer.learning_rate = 3e-4
  c.schedule.warmup = 10
  defaults.fill(
      c.data.sources, screens=dict(kind="screens", path="assets/screens-train.array_record", share=1.0, turns=2, tasks=dict(caption=0.5, list=0.5)))
  return c
