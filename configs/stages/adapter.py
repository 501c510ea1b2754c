"""Adapter alignment: captions and element lists of screens, vision tower and language model frozen.

  python -m bluelm_jax.train --config=configs/stages/adapter.py:miniature --workdir=/tmp/adapter --config.init_from=/tmp/text

Of BlueLM-2.5-3B 2.5 M pairs are published, and what is frozen; rate and batch are ours. At that size the
vision tower is SigLIP2's, a HuggingFace directory: --config.init_vision; the pairs are yours, under
data/, and the mesh is for 256 chips; --config.mesh changes it.
"""

from bluelm_jax.training import defaults

SIZES = ("miniature", "small", "bluelm_2_5_3b")


def get_config(size: str = "miniature"):
  if size not in SIZES:
    raise ValueError(f"size {size!r} is unknown; use {', '.join(SIZES)}")
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
  if size == "bluelm_2_5_3b":
    c.data.rows, c.data.length, c.data.tile_slots = 512, 4096, 2 * 16  # sixteen tiles a row
    c.mesh.update(data=16, fsdp=16)
    c.steps = 1000  # at 800 tokens a pair
    c.loss_chunks = 8
    c.optimizer.learning_rate, c.schedule.warmup = 1e-3, 100
    c.schedule.kind = "cosine"
    c.data.sources = {}
    defaults.fill(c.data.sources, pairs=dict(kind="conversations", path="data/adapter/*.array_record", share=1.0))
    defaults.look(c, evaluate=200)
  return c
