"""Supervised fine-tuning: grounding, screen questions and reasoning, with [|BlueThink|] deciding on thought.

  python -m bluelm_jax.train --config=configs/stages/sft.py:miniature --workdir=/tmp/sft --config.init_from=/tmp/joint
"""

from bluelm_jax.training import defaults


def get_config(size: str = "miniature"):
  c = defaults.stage()
  c.name, c.preset = "sft", size
  c.data.rows, c.data.length, c.data.tile_slots = 4, 336, 12  # two screens a row
  c.steps = 900
  if size == "small":
    c.data.rows, c.data.length, c.data.tile_slots = 32, 1024, 292
    c.data.workers, c.steps = 12, 500
  c.optimizer.name = "muon"
  c.optimizer.learning_rate = 1e-3
  c.optimizer.muon_learning_rate = 0.01
  c.optimizer.weight_decay = 0.01
  # The vision tower and adapter move slowly, so that the language model can learn to read them.
  defaults.fill(c.optimizer.lr_factors, vision=dict(path="(vision|adapter)/.*", factor=0.1))
  c.schedule.warmup = 20
  c.schedule.kind = "linear"
  c.schedule.final = 0.02
  defaults.fill(
      c.data.sources,
      screens=dict(
          kind="screens", path="assets/screens-train.array_record", share=0.7, turns=3,
          tasks=dict(ground=0.5, list=0.1, color=0.35, refer=0.02, read=0.01, caption=0.02)),
      reasoning=dict(kind="reasoning", share=0.2, styles=dict(long=0.6, short=0.2, none=0.2)),
      prose=dict(kind="documents", path="assets/text-train.array_record", share=0.1, window=192),
  )
  return c
