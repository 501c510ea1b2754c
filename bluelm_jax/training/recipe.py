"""An ordered list of stages, each starting from the last checkpoint of the one before."""

import json
import pathlib
import sys
import time

import jax

from bluelm_jax import supervise
from bluelm_jax.training import goodput
from bluelm_jax.training import record
from bluelm_jax.training import schedules
from bluelm_jax.training import stage
from bluelm_jax.training import store

_DONE = "done.json"


def stages(config, workdir) -> list[tuple[str, str, object]]:
  """(name, directory, stage config) in order: `init_from` set along the line, teachers and stores that are earlier stages found, schedules joined
  that go on. A stage that stores a teacher's words leaves no weights: the next starts from the one before it."""
  if "order" not in config:
    raise ValueError("this config is no recipe; run a stage with python -m bluelm_jax.train")
  unknown = set(config.order) - set(config.stages)
  if unknown or not config.order:
    raise ValueError(f"order {tuple(config.order)} must name stages; use {', '.join(config.stages)}")
  trained = [name for name in config.order if config.stages[name].objective != "teach"]
  reference = config.get("evaluation", {}).get("before")
  if reference is not None and reference not in trained:
    raise ValueError(f"evaluation.before = {reference!r} is no stage of the order; use {', '.join(trained)}")
  starts = config.get("starts", {})
  for name in set(starts) - set(config.order):
    raise ValueError(f"starts.{name} names no stage of the order; use {', '.join(config.order)}")
  found, weights, stores, line, last = [], {}, {}, [], ""
  for number, name in enumerate(config.order):
    stage_config = config.stages[name].copy_and_resolve_references()
    reads = stage_config.objective != "teach" or not stage_config.preset  # of a preset's batches a teacher speaks without the student's weights
    start = starts.get(name, last if reads else "")
    if start and start not in weights:
      raise ValueError(f"starts.{name} = {start!r} is no stage before it; use '' for random weights, or one of {', '.join(weights)}")
    if name in starts and not reads:
      raise ValueError(f"starts.{name} is set, but {name} stores a teacher's words for the batches of a preset; remove it")
    if stage_config.init_from and (start or name in starts):
      raise ValueError(f"stages.{name}.init_from is set, but in a recipe {name} starts from {start or 'random weights'}; empty it, or run the stage with python -m bluelm_jax.train")
    stage_config.init_from = weights.get(start, stage_config.init_from)
    stage_config.distill.teacher = weights.get(stage_config.distill.teacher, stage_config.distill.teacher)
    stage_config.distill.stored = stores.get(stage_config.distill.stored, stage_config.distill.stored)
    directory = str(pathlib.Path(workdir) / f"{number + 1}-{name}")
    found.append((name, directory, stage_config))
    if name not in trained:
      stores[name] = directory
      continue
    weights[name], last = directory, name
    if name not in starts and (not line or start == line[-1][0]):
      line.append((name, stage_config))
    elif stage_config.schedule.continues:
      raise ValueError(f"stages.{name}.schedule.continues is set, but {name} is no stage of the line, or starts from none; set schedule.offset and horizon instead")
  schedules.join(line)
  return found


def run(config, workdir, life: supervise.Life | None = None) -> None:
  """Runs the stages that are not done; a stage counts as done once done.json names its last step.

  Args:
    life: of this process, where a door began it.
  """
  started = time.monotonic()
  found = stages(config, workdir)
  _check(found)
  for name, directory, stage_config in found:
    if finished(directory):
      print(f"{name}: done before, at step {stage_config.steps}", file=sys.stderr)
      continue
    before = time.monotonic()
    stage.run(stage_config, directory, life=life)
    life = life and life.next()
    if jax.process_index() == 0:
      done = pathlib.Path(directory) / _DONE
      temporary = done.with_suffix(".tmp")
      temporary.write_text(json.dumps({"steps": stage_config.steps, "seconds": round(time.monotonic() - before, 1)}))
      temporary.rename(done)
  print(f"recipe: {time.monotonic() - started:.0f} s; all stages: {goodput.line([d for _, d, _ in found])}", file=sys.stderr)


def finished(directory) -> bool:
  """Whether a stage ran to its end."""
  done = pathlib.Path(directory) / _DONE
  if not done.exists():
    return False
  try:
    steps = json.loads(done.read_text())["steps"]
  except (ValueError, KeyError, TypeError) as e:
    raise ValueError(f"{done} is damaged; remove it, and the stage goes on from its last checkpoint") from e
  return steps == (record.latest_step(directory) or store.stop(directory))


def _check(found) -> None:
  """Raises ValueError where a stage was trained with another config, or from a run that is there no more."""
  fresh = {}
  for name, directory, stage_config in found:
    origins = stage_config.init_from, stage_config.distill.teacher, stage_config.distill.stored
    if not record.begun(directory):
      fresh[directory] = name
    elif before := next(filter(None, map(fresh.get, origins)), None):
      raise ValueError(f"{directory} started from an earlier run of {before}, which is to be trained anew; remove {directory} too, or choose another --workdir")
    record.check(directory, stage_config)
