"""Evaluates a finished recipe on held-out data and writes report.html.

  python -m bluelm_jax.evaluate --config=configs/recipes/miniature.py --workdir=/tmp/miniature
"""

import pathlib

from absl import flags
from ml_collections import config_flags

from bluelm_jax import door
from bluelm_jax import process

_CONFIG = config_flags.DEFINE_config_file("config", None, "The recipe that was run.", lock_config=True)
_WORKDIR = flags.DEFINE_string("workdir", None, "The recipe's workdir; gets report.html, report.json and grounding.png.")


def main(argv):
  del argv
  process.keep_memory()
  from bluelm_jax.evaluation import report
  from bluelm_jax.evaluation import runner
  from bluelm_jax.training import recipe

  config, workdir = _CONFIG.value, pathlib.Path(_WORKDIR.value)
  stages = recipe.stages(config, workdir)
  directories = {name: pathlib.Path(d) for name, d, _ in stages}
  trained = {name: directories[name] for name, _, c in stages if c.objective != "teach"}
  runner.check(config.evaluation, tuple(trained))
  missing = [name for name, d in directories.items() if not recipe.finished(d)]
  if missing:
    raise ValueError(f"stage {missing[0]!r} is not finished in {workdir}; run python -m bluelm_jax.recipe first")
  process.cache_programs()
  results = runner.evaluate(config.evaluation, trained)
  report.write(results, directories, workdir)
  print(report.table(results))
  print(f"\nreport: {workdir / 'report.html'}")


if __name__ == "__main__":
  door.run(main, required=("config", "workdir"))
