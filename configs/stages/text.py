"""Text pretraining: Chinese and English prose, and reasoning with its chains.

  python -m bluelm_jax.train --config=configs/stages/text.py:miniature --workdir=/tmp/text
"""

from bluelm_jax.training import defaults

SIZES = ("miniature", "small")


def get_config(size: str = "miniature"):
  if size not in SIZES:
    raise ValueError(f"size {size!r} is unknown; use {', '.join(SIZES)}")
  c = defaults.stage()
  c.name, c.preset = "text", size
  c.data.rows, c.data.length = 4, 256
  c.steps = 600
  if size == "small":
    c.data.rows, c.data.length = 64, 1024
    c.data.workers, c.steps = 12, 350
  c.optimizer.name = "muon"
  c.optimizer.learning_rate = 2e-3
  c.optimizer.weight_decay = 0.01
  c.schedule.warmup = 30
  c.schedule.kind = "constant"  # the decay comes with the last stage
  defaults.fill(
      c.data.sources,
      prose=dict(kind="documents", path="assets/text-train.array_record", share=0.5, window=256),
      reasoning=dict(kind="reasoning", share=0.5, styles=dict(long=0.7, short=0.2, none=0.1)),
  )
  return c
