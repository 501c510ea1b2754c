"""Runs all stages of a recipe, each from the one before, and resumes where it stopped.

  python -m bluelm_jax.recipe --config=configs/recipes/miniature.py --workdir=/tmp/miniature
"""

from absl import flags
from ml_collections import config_flags

from bluelm_jax import door
from bluelm_jax import process

_CONFIG = config_flags.DEFINE_config_file("config", None, "A recipe: configs/recipes/NAME.py[:argument].", lock_config=True)
_WORKDIR = flags.DEFINE_string("workdir", None, "Gets one folder a stage; an earlier run there is resumed.")


def main(argv):
  del argv
  process.keep_memory()
  from bluelm_jax.training import recipe

  recipe.run(_CONFIG.value, _WORKDIR.value)


if __name__ == "__main__":
  door.run(main, required=("config", "workdir"))
