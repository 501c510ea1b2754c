"""Runs all stages of a recipe, each from the one before, and resumes where it stopped.

  python -m bluelm_jax.recipe --config=configs/recipes/miniature.py --workdir=/tmp/miniature

The stages run in a child process: one that crashes, or makes no step for --deadline seconds, is started again from
the last checkpoint. SIGTERM saves and leaves with exit code 75; the same command goes on.
"""

from absl import flags
from ml_collections import config_flags

from bluelm_jax import door
from bluelm_jax import process
from bluelm_jax import supervise

_CONFIG = config_flags.DEFINE_config_file("config", None, "A recipe: configs/recipes/NAME.py[:argument].", lock_config=True)
_WORKDIR = flags.DEFINE_string("workdir", None, "Gets one folder a stage; an earlier run there is resumed.")
_DEADLINE = flags.DEFINE_float(
    "deadline", 600, "Seconds without a step after which the process is taken to hang; six times as many before a stage's first.", lower_bound=1)
_DISTRIBUTED = flags.DEFINE_bool("distributed", False, "Trains as one of several processes, each begun with the same command; see process.join_others.")


def main(argv):
  del argv
  life = supervise.lives(_WORKDIR.value, _DEADLINE.value)
  process.keep_memory()
  if _DISTRIBUTED.value:
    process.join_others()
  from bluelm_jax.training import recipe

  recipe.run(_CONFIG.value, _WORKDIR.value, life)


if __name__ == "__main__":
  door.run(main, required=("config", "workdir"))
