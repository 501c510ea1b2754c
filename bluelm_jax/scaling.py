"""Proposes batch size and learning rate for a compute budget, by DeepSeek's scaling laws.

  python -m bluelm_jax.scaling --flops=1e20
  python -m bluelm_jax.scaling --config=configs/stages/text.py:small [--config.steps=100000]

With a config, the budget is that of its language model on its tokens. The laws hold for text and AdamW.
"""

from absl import flags
from ml_collections import config_flags

from bluelm_jax import door

_CONFIG = config_flags.DEFINE_config_file("config", None, "A stage or a layout: configs/stages/NAME.py[:argument].", lock_config=True)
_FLOPS = flags.DEFINE_float("flops", None, "The budget: FLOPs of all of training.", lower_bound=1.0)


def main(argv):
  del argv
  if (_FLOPS.value is None) == (flags.FLAGS["config"].value is None):
    raise ValueError("give one of --flops and --config")
  from bluelm_jax.training import checks
  from bluelm_jax.training import scaling
  from bluelm_jax.training import stage

  if _FLOPS.value is not None:
    lines = scaling.proposal(_FLOPS.value)
  else:
    checks.complete(_CONFIG.value)
    lines = scaling.for_stage(_CONFIG.value, stage.described_model(_CONFIG.value))
  for name, value in lines:
    print(f"{name:20} {value}")


if __name__ == "__main__":
  door.run(main)
