"""Fine-tuning of the text model before it sees images: conversations with and without thought.

  python -m bluelm_jax.train --config=configs/stages/text_sft.py:miniature --workdir=/tmp/text_sft --config.init_from=/tmp/decay

That BlueLM-2.5-3B's text model was fine-tuned is published, nothing more: length, batch, rate and mixture are ours. At that
size the data are yours, under data/, and the mesh is for 256 chips; --config.mesh changes it.
"""

from bluelm_jax.training import defaults

SIZES = ("miniature", "bluelm_2_5_3b")


def get_config(size: str = "miniature"):
  if size not in SIZES:
    raise ValueError(f"size {size!r} is unknown; use {', '.join(SIZES)}")
  c = defaults.stage()
  c.name, c.preset = "text_sft", size
  c.trainable = ("decoder/.*",)  # text alone is read; vision tower and adapter wait
  c.data.rows, c.data.length, c.steps = 4, 256, 350
  c.optimizer.name, c.optimizer.learning_rate, c.optimizer.weight_decay = "muon", 1e-3, 0.01
  c.schedule.warmup, c.schedule.kind = 20, "linear"
  defaults.fill(
      c.data.sources,
      # Notes close by: what is learnt of them carries over to long texts, and does not come from those.
      lookup=dict(kind="lookup", path="assets/text-train.array_record", share=0.6, lengths=(1, 12), notes=4),
      reasoning=dict(kind="reasoning", share=0.2, styles=dict(long=0.5, short=0.25, none=0.25)),
      prose=dict(kind="documents", path="assets/text-train.array_record", share=0.2, window=c.data.length),
  )
  if size == "bluelm_2_5_3b":
    c.data.rows, c.data.length, c.steps = 512, 4096, 4000
    c.mesh.update(data=16, fsdp=16)  # 256 chips
    c.loss_chunks = 8
    c.optimizer.name, c.optimizer.learning_rate, c.optimizer.weight_decay = "adamw", 2e-5, 0.1
    c.schedule.warmup = 100
    c.data.sources = {}
    defaults.fill(c.data.sources, chats=dict(kind="conversations", path="data/text-sft/*.array_record", share=1.0))
    defaults.look(c, evaluate=500)
  return c
