"""All eight stages in miniature, and beside them what each is measured against; half an hour on two quiet CPU cores.

  python -m bluelm_jax.recipe --config=configs/recipes/miniature_whole.py --workdir=/tmp/whole
  python -m bluelm_jax.evaluate --config=configs/recipes/miniature_whole.py --workdir=/tmp/whole
"""

from bluelm_jax.training import defaults

_LINE = (
    "teacher", "prune", "distil", "distil_decay", "text_sft", "vision", "adapter", "joint", "reasoning",
    "decay_1k=decay:miniature_1k", "decay_2k=decay:miniature_2k", "sft")
# The controls: each goes beside a stage of the line, on as many steps, from the same start but where that is what is asked.
_CONTROLS = (
    "scratch=distil", "scratch_decay=distil_decay", "joint_no_text=joint", "joint_longer=joint", "decay_short=decay:miniature_1k")


def get_config():
  c = defaults.recipe(__file__, (*_LINE, *_CONTROLS), "miniature")
  s = c.stages
  s.distil.distill.teacher = s.distil_decay.distill.teacher = "teacher"
  s.vision.steps, s.joint.steps, s.sft.steps = 400, 500, 300
  s.sft.yarn = 4.0

  c.starts.scratch = ""
  s.scratch.objective = s.scratch_decay.objective = "lm"
  c.starts.joint_no_text = "adapter"
  s.joint_no_text.steps = s.joint.steps
  s.joint_no_text.data.sources = {"screens": s.joint.data.sources.screens}  # as many tile slots, so as many screens, in emptier rows
  c.starts.joint_longer = "joint"  # the joint mixture on, in the place of the reasoning stage
  s.joint_longer.steps, s.joint_longer.data.length, s.joint_longer.schedule.warmup = s.reasoning.steps, s.reasoning.data.length, 0
  s.joint_longer.data.tile_slots = 18  # so that rows are full
  c.starts.decay_short = "reasoning"  # the rate's fall and the mixture without long rows and YaRN
  s.decay_short.yarn, s.decay_short.data.rows, s.decay_short.data.length = 1.0, 4, 512
  s.decay_short.data.sources.lookup.lengths = (128, 270)
  s.decay_short.steps = s.decay_short.schedule.horizon
  for name, source in s.decay_short.data.sources.items():  # the shares of both stages of the line, which meet
    source.share = (*source.share, *((s.decay_1k.steps + step, share) for step, share in s.decay_2k.data.sources[name].share[1:]))

  c.evaluation.update(
      before="text_sft", after="sft", text="assets/text-test.array_record", screens="assets/screens-test.array_record",
      grounding_items=420, reasoning_items=400, screen_items=600, seed=2026,
      comparisons=(
          ("text", "distil_decay", "scratch_decay"), ("text", "joint", "text_sft"), ("text", "joint_no_text", "text_sft"),
          ("text", "joint", "joint_no_text"), ("reasoning", "reasoning", "joint"), ("reasoning", "reasoning", "joint_longer"),
          ("lookup", "decay_2k", "reasoning"), ("lookup", "decay_2k", "decay_short")))
  return c
