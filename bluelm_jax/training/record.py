"""What a workdir was trained with, so that another config is never taken for the same run.

`stage.json` holds the whole config, a name of the run that no other run has, and the names of the runs it started
from and was taught by. A workdir without a checkpoint has learnt nothing and may get another config.
"""

import json
import pathlib
import uuid

from bluelm_jax.interop import load
from bluelm_jax.training import defaults

FILE_NAME = "stage.json"
STORE = "top_k"  # the folder of what a teacher said; see training.store
_ORIGINS = {
    "init_from": ("start", "started from"), "init_vision": ("vision", "took its vision tower from"),
    "distill.teacher": ("teacher", "was taught by"),
    "distill.stored": ("store", "was taught from")}  # keys that name runs
# How a stage is computed, printed and saved; what it learns does not depend on these.
_FREE = (
    "name", "mesh", "zero", "layout", "execution", "loss_chunks", "log_every", "watch", "checkpoint_every", "keep", "keep_every", "export_every",
    "evaluate", "data.workers", "data.max_bad_share")


def latest_step(workdir) -> int | None:
  """The step of the newest finished checkpoint; directories without a number are half-written."""
  return max((int(p.name) for p in (pathlib.Path(workdir) / "checkpoints").glob("*") if p.name.isdigit()), default=None)


def check(workdir, config) -> None:
  """Raises ValueError if the checkpoint or store in `workdir` was made with another config, or from another start or teacher."""
  file = pathlib.Path(workdir) / FILE_NAME
  if not begun(workdir) or not file.exists():
    return
  try:
    stored = {"vision": "", "teacher": "", "store": "", **json.loads(file.read_text())}
    old = _with_defaults(stored["config"])
    origins = {key: stored[name] for key, (name, _) in _ORIGINS.items()}
  except (ValueError, KeyError, TypeError, AttributeError) as e:
    raise ValueError(f"{file} is damaged; restore it, or choose another --workdir") from e
  new, free = flat(config.to_dict()), (*_FREE, *(["steps"] if config.objective == "teach" else []))  # a store may grow
  fix = f"choose another --workdir, or remove {workdir} to train it anew"
  for key in sorted(old | new):
    if key not in _ORIGINS and key not in free and key.split(".")[0] not in free and old.get(key) != new.get(key):
      raise ValueError(f"{workdir} was trained with {key} = {old.get(key, 'absent')}, now it is {new.get(key, 'absent')}; set it back, {fix}")
  for key, (_, words) in _ORIGINS.items():
    found = _run(json.loads(new[key]))
    if found != origins[key] and (found is not None or old[key] != new[key]):  # one that is there no more cannot be compared
      raise ValueError(f"{workdir} {words} {old[key]}, and {key} = {new[key]} is not that run; set it back, {fix}")


def write(workdir, config) -> None:
  """Records the config of a run that begins; keeps the record of one that goes on."""
  file = pathlib.Path(workdir) / FILE_NAME
  if file.exists() and begun(workdir):
    return
  named = flat(config.to_dict())
  origins = {name: _run(json.loads(named[key])) for key, (name, _) in _ORIGINS.items()}
  values = {"run": uuid.uuid4().hex, **origins, "config": config.to_dict()}
  temporary = file.with_suffix(".tmp")
  temporary.write_text(json.dumps(values, indent=1))
  temporary.rename(file)


def config(workdir) -> dict[str, str]:
  """The recorded config of a workdir's run: dotted names -> values as JSON.

  Raises:
    ValueError: there is none, or a damaged one.
  """
  file = pathlib.Path(workdir) / FILE_NAME
  try:
    return _with_defaults(json.loads(file.read_text())["config"])
  except FileNotFoundError as e:
    raise ValueError(f"{workdir} has no {FILE_NAME}; name the --workdir of a stage") from e
  except (ValueError, KeyError, TypeError, AttributeError) as e:
    raise ValueError(f"{file} is damaged; restore it, or choose another --workdir") from e


def _with_defaults(values: dict) -> dict[str, str]:
  """Flat; a run begun before a key was there had what is now its default."""
  return {**flat(defaults.stage().to_dict()), **flat(values)}


def begun(workdir) -> bool:
  """Whether something was made that another config must not go on with."""
  return latest_step(workdir) is not None or any((pathlib.Path(workdir) / STORE).glob("*.npz"))


def _run(path: str) -> str | None:
  """The run that made the checkpoint at `path`, or its place where it has no record; None where there is none."""
  if not path:
    return ""
  try:
    directory = load.checkpoint_directory(path)
    return json.loads((directory / FILE_NAME).read_text())["run"]
  except FileNotFoundError:
    return str(directory.absolute())
  except (ValueError, KeyError, TypeError):
    return None


def flat(values: dict, prefix: str = "") -> dict[str, str]:
  """{"data.rows": "8"}: a nested dict by dotted names, its values as JSON."""
  found = {}
  for key, value in values.items():
    found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: json.dumps(value)}
  return found
