"""Fast decay with long context: the rate falls to nothing while rows grow longer and RoPE is stretched by YaRN.

  python -m bluelm_jax.train --config=configs/stages/decay.py:miniature_1k --workdir=/tmp/decay_1k --config.init_from=/tmp/reasoning
  python -m bluelm_jax.train --config=configs/stages/decay.py:miniature_2k --workdir=/tmp/decay_2k --config.init_from=/tmp/decay_1k

Of BlueLM-2.5-3B 1.3 T tokens are published, 4K to 32K, YaRN, smaller batches, and that native long texts and long
reasoning rose past 80 %. The lengths between, their tokens, batches and rates, and YaRN's settings are ours. Rates go
down one straight line: from where `joint.py` and `reasoning.py` leave their cosine (6.5 T of 12 T) to zero at 1.3 T.
Meshes are for 256 chips, --config.mesh changes them. The data are yours, under data/.
"""

import pathlib

from bluelm_jax.training import defaults

# preset, context after / before, rows, tokens a row, steps, and the share of long data at the beginning and the end.
_TABLE = {
    "miniature_1k": ("miniature", 2.0, 2, 1024, 150, (0.6, 0.7)),
    "miniature_2k": ("miniature", 4.0, 1, 2048, 150, (0.7, 0.85)),
    "bluelm_2_5_3b_8k": ("bluelm_2_5_3b", 2.0, 256, 8192, round(0.3e12 / 2**24), (0.5, 0.65)),
    "bluelm_2_5_3b_16k": ("bluelm_2_5_3b", 4.0, 128, 16_384, round(0.3e12 / 2**24), (0.65, 0.75)),
    "bluelm_2_5_3b_32k": ("bluelm_2_5_3b", 8.0, 64, 32_768, round(0.7e12 / 2**24), (0.75, 0.85)),
}
SIZES = tuple(_TABLE)


def get_config(size: str = "miniature_1k"):
  if size not in SIZES:
    raise ValueError(f"size {size!r} is unknown; use {', '.join(SIZES)}")
  preset, stretch, rows, length, steps, (first, last) = _TABLE[size]
  c = defaults.load(f"{pathlib.Path(__file__).parent}/joint.py:{preset}")
  c.name, c.preset, c.yarn = "decay", preset, stretch
  c.data.rows, c.data.length, c.steps = rows, length, steps
  c.data.accumulate = ((0, 8 if preset == "bluelm_2_5_3b" else 1),)  # 16 Mi tokens at true size
  # All sizes of a preset share one line: where this one begins on it, in steps, and the line's length.
  line = [name for name in SIZES if _TABLE[name][0] == preset]
  before = [_TABLE[name][4] for name in line[: line.index(size)]]
  c.schedule.update(kind="linear", warmup=0, final=0.0, offset=sum(before), horizon=sum(_TABLE[name][4] for name in line), continues=False)
  batches = steps * c.data.accumulate[0][1]  # of data.rows, which shares count
  long, short = ((0, first), (batches, last)), ((0, 1 - first), (batches, 1 - last))
  scaled = lambda knots, share: tuple((step, round(value * share, 4)) for step, value in knots)
  c.data.sources = {}
  if preset == "bluelm_2_5_3b":
    c.optimizer.learning_rate = 1.5e-4
    context = length // 8192  # 8192 tokens a chip of 256
    c.mesh.update(data=16 // context, fsdp=16, context=context)
    c.data.tile_slots = max(8 * context, 16)  # images take a fifth of a row; the largest has 16 tiles
    defaults.fill(
        c.data.sources,
        long_text=dict(kind="documents", path="data/long/text-*.array_record", share=scaled(long, 0.6)),
        long_reasoning=dict(kind="conversations", path="data/long/reasoning-*.array_record", share=scaled(long, 0.4)),
        images=dict(kind="conversations", path="data/joint/*.array_record", share=scaled(short, 0.6)),
        text=dict(kind="documents", path="data/text/*.array_record", share=scaled(short, 0.4)))
    defaults.look(c, evaluate=1000)
    return c
  path = "assets/text-train.array_record"
  defaults.fill(
      c.data.sources,
      lookup=dict(kind="lookup", path=path, share=scaled(long, 0.7), lengths=(length // 4, length - 280), notes=10),
      prose=dict(kind="documents", path=path, share=scaled(long, 0.3)),
      reasoning=dict(kind="reasoning", share=scaled(short, 0.5), styles=dict(long=0.7, short=0.2, none=0.1)),
      screens=dict(
          kind="screens", path="assets/screens-train.array_record", share=scaled(short, 0.5), turns=2, tasks=dict(color=0.4, ground=0.4, list=0.2)))
  return c
