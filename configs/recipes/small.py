"""The miniature's recipe at about 100 M parameters, for one GPU: eleven minutes on an H100 beside 16 processor cores.

  python -m bluelm_jax.recipe --config=configs/recipes/small.py --workdir=/tmp/small
  python -m bluelm_jax.evaluate --config=configs/recipes/small.py --workdir=/tmp/small
"""

from bluelm_jax.training import defaults


def get_config():
  c = defaults.recipe(__file__, ("text", "vision", "adapter", "joint", "sft"), "small")
  c.evaluation.update(
      before="text", after="sft", comparisons=(), text="assets/text-test.array_record", screens="assets/screens-test.array_record",
      grounding_items=600, reasoning_items=400, screen_items=600, seed=2026)
  return c
