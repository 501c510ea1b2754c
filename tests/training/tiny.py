"""The miniature recipe with few steps, small batches and one layer in each tower, on one device.

  python -m tests.training.tiny DIR    # runs it in DIR/whole, and in DIR/broken, where every stage stops half-way and is resumed
"""

import dataclasses
import pathlib
import sys

from bluelm_jax.models import presets
from bluelm_jax.training import defaults

ROOT = pathlib.Path(__file__).parents[2]
STEPS = 4


def config():
  c = defaults.load(ROOT / "configs/recipes/miniature.py")
  for stage_config in c.stages.values():
    stage_config.steps, stage_config.log_every, stage_config.checkpoint_every = STEPS, 1, 2
    stage_config.data.rows, stage_config.data.tile_slots = 2, 4 * bool(stage_config.data.tile_slots)
  return c


def shallow():
  """The miniature with one layer in each tower, which compiles in half the time."""
  whole = presets.miniature()
  return dataclasses.replace(whole, **{part: dataclasses.replace(getattr(whole, part), num_layers=1) for part in ("vision", "decoder")})


def main(workdir: str):
  from bluelm_jax.training import recipe
  from bluelm_jax.training import stage
  from tests.training import programs

  presets.PRESETS["miniature"] = shallow
  programs.remember_all(setattr)
  whole, broken = config(), f"{workdir}/broken"
  recipe.run(whole, f"{workdir}/whole")
  for number, (_, directory, stage_config) in enumerate(recipe.stages(whole, broken)):
    stage.run(stage_config, directory, stop_after=3)  # an odd step, in the middle of the packer's stream
    part = config()
    part.order = whole.order[: number + 1]
    recipe.run(part, broken)


if __name__ == "__main__":
  main(sys.argv[1])
  assert "torch" not in sys.modules  # though it is installed for other tests
