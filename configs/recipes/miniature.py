"""The whole life of a miniature BlueLM in minutes on two CPU cores; `make demo` runs this.

  python -m bluelm_jax.recipe --config=configs/recipes/miniature.py --workdir=/tmp/miniature
  python -m bluelm_jax.evaluate --config=configs/recipes/miniature.py --workdir=/tmp/miniature
"""

from bluelm_jax.training import defaults


def get_config():
  c = defaults.recipe(__file__, ("text", "vision", "adapter", "joint", "sft"), "miniature")
  c.stages.sft.trainable = ("(adapter|decoder)/.*",)  # the tower has learnt; its gradients would take a fifth of each step
  c.evaluation.update(
      before="text", after="sft", comparisons=(),
      text="assets/text-test.array_record", screens="assets/screens-test.array_record",
      grounding_items=420, reasoning_items=400, screen_items=600, seed=2026)
  return c
