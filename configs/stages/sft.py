"""Supervised fine-tuning: grounding, screen questions and reasoning, with [|BlueThink|] deciding on thought.

  python -m bluelm_jax.train --config=configs/stages/sft.py:miniature --workdir=/tmp/sft --config.init_from=/tmp/joint

Of BlueLM-2.5-3B's fine-tuning 32K rows are published, ordinary chains of thought three times and long ones nine
times; batch, rate and shares are ours. At that size the data are yours, under data/; steps must be what their epochs make: where they
end before, the stage stops and says at which step. The mesh is for 256 chips, --config.mesh changes it.
"""

from bluelm_jax.training import defaults

SIZES = ("miniature", "small", "bluelm_2_5_3b")


def get_config(size: str = "miniature"):
  if size not in SIZES:
    raise ValueError(f"size {size!r} is unknown; use {', '.join(SIZES)}")
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
  if size == "bluelm_2_5_3b":
    c.yarn = 8.0  # as decay.py leaves it
    c.data.rows, c.data.length, c.data.tile_slots = 64, 32_768, 40
    c.mesh.update(data=4, fsdp=16, context=4)
    c.steps = 3000
    c.loss_chunks, c.execution.remat = 8, "dots_no_batch"
    c.optimizer.name, c.optimizer.learning_rate, c.optimizer.weight_decay = "adamw", 1e-5, 0.1
    c.optimizer.lr_factors = {}
    c.schedule.warmup = 100
    c.data.sources = {}
    kinds = dict(at_once=(0.3, 3), ordinary_thought=(0.4, 3), long_thought=(0.3, 9))
    defaults.fill(c.data.sources, **{
        n: dict(kind="conversations", path=f"data/sft/{n}-*.array_record", share=s, epochs=e) for n, (s, e) in kinds.items()})
    defaults.look(c, evaluate=500)
  return c
