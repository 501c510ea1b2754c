"""Model configurations as JSON: `model.json` beside every checkpoint."""

import dataclasses
import json
import math
import pathlib
import types
import typing

from bluelm_jax.models import config as config_lib

FILE_NAME = "model.json"
_KINDS = {"bluelm": config_lib.BlueLMConfig, "decoder": config_lib.DecoderConfig, "vision": config_lib.VisionConfig}
_DTYPES = ("float32", "bfloat16", "float16", "float64")

ModelConfig = config_lib.BlueLMConfig | config_lib.DecoderConfig | config_lib.VisionConfig


def build(config: ModelConfig):
  """The Flax module a configuration describes."""
  from bluelm_jax.models import bluelm, decoder, vision  # here so that configs alone stay light

  modules = {config_lib.BlueLMConfig: bluelm.BlueLM, config_lib.DecoderConfig: decoder.Decoder, config_lib.VisionConfig: vision.VisionTower}
  return modules[type(config)](config)


def to_dict(config: ModelConfig) -> dict:
  kind = next(k for k, cls in _KINDS.items() if isinstance(config, cls))
  return {"kind": kind, **dataclasses.asdict(config)}


def from_dict(values: dict) -> ModelConfig:
  """Raises ValueError on an unknown kind or field, or a value of another type or out of range."""
  values = dict(values)
  kind = values.pop("kind", None)
  if not isinstance(kind, str) or kind not in _KINDS:
    raise ValueError(f"model kind {kind!r} is unknown; use {', '.join(_KINDS)}")
  return _fill(_KINDS[kind], values)


def _fill(cls, values: dict):
  hints = typing.get_type_hints(cls)
  unknown = set(values) - set(hints)
  if unknown:
    raise ValueError(f"{cls.__name__} has no field {sorted(unknown)[0]!r}; its fields are {', '.join(hints)}")

  defaults = {f.name: f.default for f in dataclasses.fields(cls)}
  return cls(**{name: _value(name, hints[name], value, defaults[name]) for name, value in values.items()})


def _value(name: str, hint, value, default):
  """`value` if it may stand in a field of type `hint`."""
  if isinstance(hint, types.UnionType):  # `X | None`
    if value is None:
      return None
    hint = next(h for h in typing.get_args(hint) if h is not type(None))
  if dataclasses.is_dataclass(hint) and isinstance(value, dict):
    return _fill(hint, value)
  number = hint in (int, float)
  if not isinstance(value, (int, float) if hint is float else hint) or number and isinstance(value, bool):
    raise ValueError(f"{name} must be of type {hint.__name__}, not {value!r}")
  if number and not (0 <= value < math.inf) or hint is int and value == 0 != default:
    raise ValueError(f"{name} = {value} is out of range")
  if name.endswith("dtype") and value not in _DTYPES:
    raise ValueError(f"{name} {value!r} is unknown; use {', '.join(_DTYPES)}")
  return value


def save(config: ModelConfig, directory) -> None:
  path = pathlib.Path(directory) / FILE_NAME
  temporary = path.with_suffix(".tmp")
  temporary.write_text(json.dumps(to_dict(config), indent=1))
  temporary.rename(path)


def load(directory) -> ModelConfig:
  """Raises ValueError, naming the file, if it is not one of ours."""
  path = pathlib.Path(directory) / FILE_NAME
  try:
    return from_dict(json.loads(path.read_text("utf-8")))
  except (ValueError, TypeError, AttributeError, RecursionError) as e:
    raise ValueError(f"{path} is not a model description ({e}); copy it again from the checkpoint") from e
