"""Joint pretraining of all parts: screens, and 40 % text.

  python -m bluelm_jax.train --config=configs/stages/joint.py:miniature --workdir=/tmp/joint --config.init_from=/tmp/adapter

Of BlueLM-2.5-3B's 4 T tokens are published, batches of 64 M, 40 % text, lower rates for the vision tower's layers,
and one decay planned over 12 T. The rate itself, its fall over the layers, the cosine, the ramp and the shares of
the kinds are ours. At that size the data are yours, under data/, and the mesh is for 256 chips;
--config.mesh changes it.
"""

from bluelm_jax.training import defaults

SIZES = ("miniature", "small", "bluelm_2_5_3b")


def get_config(size: str = "miniature"):
  if size not in SIZES:
    raise ValueError(f"size {size!r} is unknown; use {', '.join(SIZES)}")
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
  if size == "bluelm_2_5_3b":
    _at_true_size(c)
  return c


def _at_true_size(c):
  # 512 rows at a time, two a chip of 256; 8, then 16, then 32 times so many make an update, in the end 16,384 rows or 64 Mi tokens.
  c.data.rows, c.data.length = 512, 4096
  c.mesh.update(data=16, fsdp=16)
  c.data.tile_slots = 2 * 12  # twelve tiles a row: nearly 60 % of its tokens
  c.data.accumulate = ((0, 8), (2000, 16), (4000, 32))
  batch = c.data.rows * c.data.length
  steps = lambda tokens: 4000 + round((tokens - 2000 * (8 + 16) * batch) / (32 * batch))
  c.steps, c.schedule.horizon = steps(4e12), steps(12e12)
  c.loss_chunks, c.execution.remat = 8, "dots_no_batch"
  c.optimizer.name, c.optimizer.learning_rate, c.optimizer.weight_decay = "adamw", 3e-4, 0.1
  c.optimizer.lr_factors = {}
  defaults.fill(c.optimizer.lr_factors, vision=dict(path="vision/.*", factor=0.5, layer_decay=0.9))
  c.schedule.kind, c.schedule.warmup = "cosine", 2000
  c.checkpoint_every, c.keep_every = 500, 5000
  c.data.sources = {}
  pictures = dict(caption=0.25, ocr=0.12, gui=0.13, other=0.1)
  defaults.fill(c.data.sources, **{n: dict(kind="conversations", path=f"data/joint/{n}-*.array_record", share=s) for n, s in pictures.items()})
  defaults.fill(c.data.sources, text=dict(kind="documents", path="data/text/*.array_record", share=0.4))
  defaults.look(c, evaluate=1000)
