"""Runs one stage.

  python -m bluelm_jax.train --config=configs/stages/text.py:miniature --workdir=/tmp/text [--config.steps=100]

SIGTERM saves and leaves with exit code 75; the same command goes on.
"""

from absl import flags
from ml_collections import config_flags

from bluelm_jax import door
from bluelm_jax import process
from bluelm_jax import supervise

_CONFIG = config_flags.DEFINE_config_file("config", None, "A stage: configs/stages/NAME.py[:argument].", lock_config=True)
_WORKDIR = flags.DEFINE_string("workdir", None, "Where checkpoints and metrics go; an earlier run there is resumed.")
_DISTRIBUTED = flags.DEFINE_bool("distributed", False, "Trains as one of several processes, each begun with the same command; see process.join_others.")


def main(argv):
  del argv
  life = supervise.Life()  # imports count
  process.keep_memory()
  if _DISTRIBUTED.value:
    process.join_others()
  from bluelm_jax.training import stage  # after the flags: --help stays fast

  stage.run(_CONFIG.value, _WORKDIR.value, life=life)


if __name__ == "__main__":
  door.run(main, required=("config", "workdir"))
