"""Runs one stage.

  python -m bluelm_jax.train --config=configs/stages/text.py:miniature --workdir=/tmp/text [--config.steps=100]
"""

from absl import flags
from ml_collections import config_flags

from bluelm_jax import door
from bluelm_jax import process

_CONFIG = config_flags.DEFINE_config_file("config", None, "A stage: configs/stages/NAME.py[:argument].", lock_config=True)
_WORKDIR = flags.DEFINE_string("workdir", None, "Where checkpoints and metrics go; an earlier run there is resumed.")


def main(argv):
  del argv
  process.keep_memory()
  from bluelm_jax.training import stage  # after the flags: --help stays fast

  stage.run(_CONFIG.value, _WORKDIR.value)


if __name__ == "__main__":
  door.run(main, required=("config", "workdir"))
