"""Trains small models on mixtures of a prepared data set's groups, for a mixture fitted to their losses.

  python -m bluelm_jax.prepare --config=MY_DATA.py --output=DIR --config.holdout=50
  python -m bluelm_jax.proxies --config=configs/proxies.py --data=DIR [--config.runs=32]
  python -m bluelm_jax.prepare --config=MY_DATA.py --output=DIR --config.holdout=50 --config.mixture.rule=fitted --config.mixture.runs=DIR/runs.json

Killed or stopped, the same command goes on; with more runs, it adds them.
"""

from absl import flags
from ml_collections import config_flags

from bluelm_jax import door
from bluelm_jax import process
from bluelm_jax import supervise

_CONFIG = config_flags.DEFINE_config_file("config", None, "Of the runs: configs/proxies.py[:preset].", lock_config=True)
_DATA = flags.DEFINE_string("data", None, "The --output of prepare: shards of two groups or more, with held-out ones.")
_OUTPUT = flags.DEFINE_string("output", "", "The JSON file of the runs; DATA/runs.json without it.")


def main(argv):
  del argv
  life = supervise.Life()
  process.keep_memory()
  from bluelm_jax.training import proxies

  output = _OUTPUT.value or f"{_DATA.value.rstrip('/')}/runs.json"
  found = proxies.run(_CONFIG.value, _DATA.value.rstrip("/"), output, life)
  best = min(found, key=lambda r: r["loss"])
  print(f"{len(found)} proxy runs in {output}; the lowest loss, {best['loss']:.4f}, has {', '.join(f'{g} {s:.3f}' for g, s in best['shares'].items())}")


if __name__ == "__main__":
  door.run(main, required=("config", "data"))
