"""Distillation: the pruned student follows the teacher it was cut from, on text.

  python -m bluelm_jax.train --config=configs/stages/distil.py:miniature --workdir=/tmp/distil \
      --config.init_from=/tmp/pruned --config.distill.teacher=/tmp/teacher

Of BlueLM-2.5-3B's distillation 3 T tokens are published. Temperature, share, batch and learning rate are ours: at
temperature 1 the teacher's own distribution is followed, and half of the loss is the data's. At that size
the data are yours, under data/, and the mesh is for 256 chips; --config.mesh changes it.
"""

from bluelm_jax.training import defaults

SIZES = ("miniature", "bluelm_2_5_3b")


def get_config(size: str = "miniature"):
  if size not in SIZES:
    raise ValueError(f"size {size!r} is unknown; use {', '.join(SIZES)}")
  c = defaults.stage()
  c.name, c.preset, c.objective = "distil", size, "distill"
  c.trainable = ("decoder/.*",)  # text alone is read; vision tower and adapter wait
  c.distill.temperature, c.distill.share = 1.0, 0.5
  c.data.rows, c.data.length = 4, 256
  c.steps = 300
  c.optimizer.name = "muon"
  c.optimizer.learning_rate = 1e-3
  c.optimizer.weight_decay = 0.01
  c.schedule.warmup = 20
  c.schedule.kind = "constant"  # the decay is a stage of its own
  if size == "bluelm_2_5_3b":
    c.data.rows, c.data.length = 2304, 4096
    c.mesh.update(data=16, fsdp=16)  # 256 chips
    c.steps = 317_892  # 3 T tokens
    c.loss_chunks = 8
    c.optimizer.name, c.optimizer.learning_rate, c.optimizer.weight_decay = "adamw", 4.2e-4, 0.1
    c.schedule.warmup = 2000
  if size == "bluelm_2_5_3b":
    defaults.fill(c.data.sources, text=dict(kind="documents", path="data/text/*.array_record", share=1.0))
    defaults.look(c, evaluate=1000)
    return c
  defaults.fill(
      c.data.sources,
      prose=dict(kind="documents", path="assets/text-train.array_record", share=0.5, window=c.data.length),
      reasoning=dict(kind="reasoning", share=0.5, styles=dict(long=0.7, short=0.2, none=0.1)),
  )
  return c
