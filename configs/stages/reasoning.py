"""Reasoning-enhanced pretraining: the joint stage goes on, on mathematics, code, logic and questions about images.

  python -m bluelm_jax.train --config=configs/stages/reasoning.py:miniature --workdir=/tmp/reasoning --config.init_from=/tmp/joint

Of BlueLM-2.5-3B 2.5 T tokens are published, and that short and long chains of thought and image questions with
reasoning are among them; the shares are ours. At that size the decay of `joint.py` goes on, whose steps before
this stage a recipe counts: alone, set schedule.continues = False and schedule.offset. The data are yours, under data/.
"""

import pathlib

from bluelm_jax.training import defaults

SIZES = ("miniature", "bluelm_2_5_3b")


def get_config(size: str = "miniature"):
  if size not in SIZES:
    raise ValueError(f"size {size!r} is unknown; use {', '.join(SIZES)}")
  c = defaults.load(f"{pathlib.Path(__file__).parent}/joint.py:{size}")
  c.name = "reasoning"
  c.data.sources = {}
  if size == "bluelm_2_5_3b":
    c.data.accumulate = ((0, 32),)
    c.steps = round(2.5e12 / (32 * c.data.rows * c.data.length))
    c.schedule.continues = True
    documents = dict(stem=0.25, code=0.2, text=0.1)
    chats = dict(long_thought=0.2, short_thought=0.1, image_reasoning=0.15)
    defaults.fill(c.data.sources, **{n: dict(kind="documents", path=f"data/reasoning/{n}-*.array_record", share=s) for n, s in documents.items()})
    defaults.fill(c.data.sources, **{n: dict(kind="conversations", path=f"data/reasoning/{n}-*.array_record", share=s) for n, s in chats.items()})
    defaults.look(c, evaluate=1000)
    return c
  c.data.length, c.steps = 512, 350
  c.schedule.warmup = 0
  defaults.fill(
      c.data.sources,
      reasoning=dict(kind="reasoning", share=0.45, styles=dict(long=0.7, short=0.2, none=0.1)),
      screens=dict(
          kind="screens", path="assets/screens-train.array_record", share=0.25, turns=2, tasks=dict(color=0.6, ground=0.2, list=0.2)),
      lookup=dict(kind="lookup", path="assets/text-train.array_record", share=0.2, lengths=(8, 340), notes=6),
      prose=dict(kind="documents", path="assets/text-train.array_record", share=0.1, window=256),
  )
  return c
