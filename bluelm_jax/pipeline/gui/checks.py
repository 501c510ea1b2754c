"""What a config asks of a browser and of questions that cannot be."""

from typing import Any, Mapping

from bluelm_jax.pipeline.gui import browser
from bluelm_jax.pipeline.gui import questions as questions_lib
from bluelm_jax.pipeline.gui import screens


def source(name: str, source: Mapping[str, Any]) -> None:
  """Raises ValueError for an impossible source of kind pages or screens; all keys are there."""
  if source["kind"] == "screens" and "language" in source:
    raise ValueError(f"source {name!r} has a language; its screens are Chinese and English by the share {'chinese'!r}, so remove it")
  devices = source["devices"]
  if not hasattr(devices, "items") or not devices:
    raise ValueError(f"source {name!r} has devices {devices!r}; give a name and dict({', '.join(browser.DEVICE_KEYS)}) of each, as in gui/browser.py")
  for device, spec in devices.items():
    unknown, missing = sorted(set(spec) - set(browser.DEVICE_KEYS)), [k for k in browser.DEVICE_KEYS[:-1] if k not in spec]
    if unknown or missing:
      raise ValueError(f"source {name!r} has device {device!r} with {f'an unknown key {unknown[0]!r}' if unknown else 'no ' + missing[0]}; it takes {', '.join(browser.DEVICE_KEYS)}")
    if min(spec["width"], spec["height"]) < 100 or not 0.5 <= spec["ratio"] <= 4:
      raise ValueError(f"source {name!r} has device {device!r} of {spec['width']} x {spec['height']} at {spec['ratio']}; use at least 100 CSS pixels a side and a ratio from 0.5 to 4")
  shares = [k for k in ("check", "chinese", "dark") if k in source and not 0 <= source[k] <= 1]
  counts = [k for k in ("scrolls", "count", "timeout", "webp_quality") if k in source and source[k] <= 0]
  if shares or counts:
    key = (shares + counts)[0]
    raise ValueError(f"source {name!r} has {key} {source[key]}; use {'a share from 0 to 1' if shares else 'more than 0'}")
  themes = set(source.get("themes", ("light",)))
  if not themes or themes - {"light", "dark"}:
    raise ValueError(f"source {name!r} has themes {', '.join(sorted(themes)) or 'none'}; use light, dark or both")
  if source.get("split", "train") not in screens.SPLITS:
    raise ValueError(f"source {name!r} has split {source['split']!r}; use {', '.join(screens.SPLITS)}")


def questions(config: Mapping[str, Any]) -> None:
  """Raises ValueError for questions that cannot be asked."""
  for task, weight in config["tasks"].items():
    if task not in questions_lib.TASKS:
      raise ValueError(f"config.gui.tasks names {task!r}; use {', '.join(questions_lib.TASKS)}")
    if weight <= 0:
      raise ValueError(f"config.gui.tasks.{task} is {weight}; use a weight over 0, or leave it out")
  if not 0 <= config["other_language"] <= 1:
    raise ValueError(f"config.gui.other_language is {config['other_language']}; use a share from 0 to 1")
  if config["turns"] < 1 or not 25 <= config["steps"] <= 1000:
    raise ValueError(f"config.gui has turns {config['turns']} and steps {config['steps']}; use at least 1 turn, and 25 to 1000 steps")
