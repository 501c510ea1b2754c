"""Pruning: a text model's checkpoint cut down to a smaller preset, by importance on batches of text.

  python -m bluelm_jax.train --config=configs/stages/text.py --config.preset=miniature_teacher --workdir=/tmp/teacher
  python -m bluelm_jax.train --config=configs/stages/prune.py:miniature --workdir=/tmp/pruned --config.init_from=/tmp/teacher

The size bluelm_2_5_3b wants a bluelm_7b_teacher with its tokenizer beside it, and documents of your own under data/; its
mesh is for 256 chips, --config.mesh changes it.
"""

from bluelm_jax.training import defaults

SIZES = ("miniature", "bluelm_2_5_3b")


def get_config(size: str = "miniature"):
  if size not in SIZES:
    raise ValueError(f"size {size!r} is unknown; use {', '.join(SIZES)}")
  c = defaults.stage()
  c.name, c.preset, c.objective = "prune", size, "prune"
  c.data.rows, c.data.length, c.steps = 8, 256, 64
  if size == "bluelm_2_5_3b":
    c.data.rows, c.data.length, c.steps = 256, 4096, 4  # 1024 rows, as many samples as Minitron's
    c.mesh.update(data=16, fsdp=16)  # 256 chips
  if size == "bluelm_2_5_3b":
    defaults.fill(c.data.sources, text=dict(kind="documents", path="data/text/*.array_record", share=1.0))
    return c
  defaults.fill(
      c.data.sources,
      prose=dict(kind="documents", path="assets/text-train.array_record", share=0.5, window=c.data.length),
      reasoning=dict(kind="reasoning", share=0.5, styles=dict(long=0.7, short=0.2, none=0.1)),
  )
  return c
