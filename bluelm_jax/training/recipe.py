"""An ordered list of stages, each starting from the last checkpoint of the one before."""

import json
import pathlib
import sys
import time

from bluelm_jax.training import stage

_DONE = "done.json"


def stages(config, workdir) -> list[tuple[str, str, object]]:
  """(name, directory, stage config) in order, with `init_from` set along the line."""
  found, before = [], ""
  for number, name in enumerate(config.order):
    stage_config = config.stages[name].copy_and_resolve_references()
    if before:
      stage_config.init_from = before
    before = str(pathlib.Path(workdir) / f"{number + 1}-{name}")
    found.append((name, before, stage_config))
  return found


def run(config, workdir) -> None:
  """Runs the stages that are not done; a stage counts as done once done.json names its last step."""
  started = time.monotonic()
  for name, directory, stage_config in stages(config, workdir):
    done = pathlib.Path(directory) / _DONE
    if done.exists() and json.loads(done.read_text())["steps"] == stage_config.steps:
      print(f"{name}: done before", file=sys.stderr)
      continue
    before = time.monotonic()
    stage.run(stage_config, directory)
    temporary = done.with_suffix(".tmp")
    temporary.write_text(json.dumps({"steps": stage_config.steps, "seconds": round(time.monotonic() - before, 1)}))
    temporary.rename(done)
  print(f"recipe: {time.monotonic() - started:.0f} s", file=sys.stderr)
