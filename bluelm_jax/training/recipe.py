"""An ordered list of stages, each starting from the last checkpoint of the one before."""

import importlib.util
import json
import pathlib
import sys
import time

from bluelm_jax.training import stage

_DONE = "done.json"


def load_config(spec: str):
  """The config of "path/to/file.py[:argument]"."""
  path, _, argument = spec.partition(":")
  if not pathlib.Path(path).is_file():
    raise ValueError(f"no config file at {path}; run from the repository's root or give its path")
  module_spec = importlib.util.spec_from_file_location(pathlib.Path(path).stem, path)
  module = importlib.util.module_from_spec(module_spec)
  module_spec.loader.exec_module(module)
  return module.get_config(argument) if argument else module.get_config()


def stages(config, workdir) -> list[tuple[str, str, object]]:
  """(name, directory, stage config) in order, with `init_from` set along the line."""
  found, before = [], ""
  for number, (name, spec) in enumerate(config.stages.items()):
    stage_config = load_config(spec.config)
    with stage_config.unlocked():
      for key, value in spec.get("override", {}).items():
        _set(stage_config, key, value)
    if before:
      stage_config.init_from = before
    before = str(pathlib.Path(workdir) / f"{number + 1}-{name}")
    found.append((name, before, stage_config))
  return found


def _set(config, key: str, value):
  *path, last = key.split(".")
  for part in path:
    config = config[part]
  if last not in config:
    raise ValueError(f"the recipe overrides {key!r}, which the stage does not have; its keys here are {', '.join(config.keys())}")
  config[last] = value


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
