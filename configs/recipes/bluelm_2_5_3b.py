"""BlueLM-2.5-3B from its teacher to its fine-tuning, stage by stage at true size; reinforcement learning follows.

  python -m bluelm_jax.recipe --config=configs/recipes/bluelm_2_5_3b.py --workdir=DIR --config.stages.adapter.init_vision=SIGLIP2

What is published and what is ours stands in each stage's file. The data are yours, under data/ or wherever the
sources' paths are set to; meshes too, by stage: configs/layouts/ has some that are known to fit.
"""

from bluelm_jax.training import defaults


def get_config():
  c = defaults.recipe(
      __file__, (
          "teacher", "prune", "distil", "distil_decay", "text_sft", "adapter", "joint", "reasoning",
          "decay_8k=decay:bluelm_2_5_3b_8k", "decay_16k=decay:bluelm_2_5_3b_16k", "decay_32k=decay:bluelm_2_5_3b_32k", "sft"),
      "bluelm_2_5_3b")
  c.stages.distil.distill.teacher = c.stages.distil_decay.distill.teacher = "teacher"
  return c
