"""Joint pretraining of all parts: screens, and 40 % text.

  python -m bluelm_jax.train --config=configs/stages/joint.py:miniature --workdir=/tmp/joint --config.init_from=/tmp/adapter
"""

from bluelm_jax.training import defaults


def get_config(size: str = "miniature"):
  c = defaults.stage()
  c.name, c.preset = "joint", size
  c.data.rows, c.data.length, c.data.tile_slots = 4, 384, 12
  c.steps = 1210
  if size == "small":
    c.data.rows, c.data.length, c.data.tile_slots = 32, 1024, 256
    c.data.workers, c.steps = 12, 1100
  c.optimizer.name = "muon"
  c.optimizer.learning_rate = 1e-3
  c.optimizer.muon_learning_rate = 0.01
  c.optimizer.weight_decay = 0.01
  # The vision tower and adapter move slowly, so that the language model can learn to read them.
  defaults.fill(c.optimizer.lr_factors, vision=dict(path="(vision|adapter)/.*", factor=0.1))
  c.schedule.warmup = 30
  c.schedule.kind = "constant"
  defaults.fill(
      c.data.sources,
      screens=dict(
          kind="screens", path="assets/screens-train.array_record", share=0.6, turns=2,
          tasks=dict(list=0.35, ground=0.35, refer=0.06, read=0.02, caption=0.02, color=0.2)),
      prose=dict(kind="documents", path="assets/text-train.array_record", share=0.25, window=192),
      reasoning=dict(kind="reasoning", share=0.15, styles=dict(long=0.7, short=0.2, none=0.1)),
  )
  return c
