"""Stands in for SigLIP2's published weights: the vision tower learns to name what each visual token shows.

Role and colour of screen elements, by likeness to the word's embedding; the language model is frozen. Users
who bring SigLIP2 weights leave this stage out.

  python -m bluelm_jax.train --config=configs/stages/vision.py:miniature --workdir=/tmp/vision --config.init_from=/tmp/text
"""

from bluelm_jax.training import defaults

SIZES = ("miniature", "small")


def get_config(size: str = "miniature"):
  if size not in SIZES:
    raise ValueError(f"size {size!r} is unknown; use {', '.join(SIZES)}")
  c = defaults.stage()
  c.name, c.preset, c.objective = "vision", size, "dense"
  c.data.rows, c.data.length, c.data.tile_slots = 8, 392, 16
  c.steps = 1200
  if size == "small":
    c.data.rows, c.data.length, c.data.tile_slots = 64, 1536, 384
    c.data.workers, c.steps = 12, 500
  c.trainable = ("vision/.*", "adapter/.*")
  c.optimizer.name = "muon"
  c.optimizer.learning_rate = 2e-3
  c.optimizer.weight_decay = 0.01
  c.schedule.warmup = 20
  c.schedule.final = 0.1
  defaults.fill(c.data.sources, labels=dict(kind="screen_labels", path="assets/screens-train.array_record", share=1.0))
  return c
