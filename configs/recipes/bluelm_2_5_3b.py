"""BlueLM-2.5-3B from its teacher to its fine-tuning, stage by stage at true size; reinforcement learning follows.

  python -m bluelm_jax.recipe --config=configs/recipes/bluelm_2_5_3b.py:TOKENIZER.json --workdir=DIR --config.stages.adapter.init_vision=SIGLIP2

What is published and what is ours stands in each stage's file. The tokenizer is yours, of at most 100,096 ids and with the
chat markers of bluelm_jax.data.chat, and so are the data, under data/ or wherever the sources' paths are set to, and beside them
held-out data of each kind under data/held-out/ (without them, set every stage's evaluate.every = 0). Meshes are for 256 chips.
"""

from bluelm_jax.training import defaults


def get_config(tokenizer: str = ""):
  c = defaults.recipe(
      __file__, (
          "teacher", "prune", "distil", "distil_decay", "text_sft", "adapter", "joint", "reasoning",
          "decay_8k=decay:bluelm_2_5_3b_8k", "decay_16k=decay:bluelm_2_5_3b_16k", "decay_32k=decay:bluelm_2_5_3b_32k", "sft"),
      "bluelm_2_5_3b")
  c.stages.distil.distill.teacher = c.stages.distil_decay.distill.teacher = "teacher"
  for stage in c.stages.values():
    stage.tokenizer = tokenizer
  return c
