"""The optimizer a stage config describes, and parameters by path."""

import functools
import re

import flax.traverse_util
import jax
import jax.numpy as jnp
import optax

from bluelm_jax.training import muon
from bluelm_jax.training import schedules


_LAYERS = "/layers/"
_AFTER = ("/final_norm", "/lm_head")  # what comes after the layers


def paths(tree) -> dict[str, jax.Array]:
  """Flat {"decoder/layers/mlp/up": leaf}."""
  return flax.traverse_util.flatten_dict(tree, sep="/")


def split_trainable(params, patterns) -> tuple[dict, dict]:
  """(trainable, frozen), both flat by path; a path is trainable if a pattern matches it whole.

  Raises:
    ValueError: a pattern that matches nothing.
  """
  flat = paths(params)
  check_patterns("trainable", patterns, flat)
  chosen = {p for p in flat if any(re.fullmatch(pattern, p) for pattern in patterns)}
  return {p: v for p, v in flat.items() if p in chosen}, {p: v for p, v in flat.items() if p not in chosen}


def check_patterns(key: str, patterns, paths) -> None:
  """Raises ValueError on a pattern that is no regular expression or matches none of the paths."""
  if not patterns:
    raise ValueError(f"{key} is empty; name parameters, e.g. '.*'")
  for pattern in patterns:
    try:
      found = any(re.fullmatch(pattern, p) for p in paths)
    except (re.error, TypeError) as e:
      raise ValueError(f"{key} pattern {pattern!r} is no regular expression ({e}); mend it") from e
    if not found:
      raise ValueError(f"{key} pattern {pattern!r} matches no parameter; parameters look like {next(iter(paths))!r}")


def merge(trainable: dict, frozen: dict):
  return flax.traverse_util.unflatten_dict({**trainable, **frozen}, sep="/")


def make_optimizer(config, schedule_config, steps: int) -> optax.GradientTransformation:
  """AdamW or a Muon over a flat {path: array} dict, with clipping and per-path learning-rate factors."""
  o = config
  schedule = _schedule(o, schedule_config, steps, "adam")
  decays = lambda params: muon.by_path(functools.partial(_decays, o), params)
  # Beside optax's Muon its AdamW has Nesterov's momentum too, as in optax.contrib.muon.
  adamw = optax.adamw(schedule, o.b1, o.b2, o.eps, weight_decay=o.weight_decay, mask=decays, nesterov=o.name == "muon")
  if o.name == "adamw":
    update = adamw
  elif o.name in ("muon", "moonlight"):
    direction = muon.jordan(o.eps) if o.name == "muon" else muon.moonlight()
    rate = _schedule(o, schedule_config, steps, "muon")
    matrices = optax.chain(direction, optax.add_decayed_weights(o.weight_decay, decays), optax.scale_by_learning_rate(rate))
    update = optax.partition({"muon": matrices, "adam": adamw}, lambda params: {p: _kind(o, p) for p in params})
  else:
    raise ValueError(f"optimizer {o.name!r} is unknown; use adamw, muon or moonlight")
  if o.moment_dtype:
    update = _moments_in(o.moment_dtype, update)

  def scale(updates, params=None):
    del params
    depths = {_tower(p): u.shape[0] for p, u in updates.items() if _LAYERS in f"/{p}"}
    return {p: u * lr_factor(o, p, u.ndim, depths.get(_tower(p), 0)) for p, u in updates.items()}

  return optax.chain(optax.clip_by_global_norm(o.clip_norm), update, optax.stateless(scale))


def _tower(path: str) -> str:
  """What a parameter's layers are counted in; "" where a model has nothing else."""
  return next((name for name in ("vision", "adapter", "decoder") if path.startswith(f"{name}/")), "")


def lr_factor(o, path: str, ndim: int = 1, depth: int = 0):
  """What `o.lr_factors` multiply a parameter's learning rate with: those of the first entry whose path matches.

  With layer_decay d, layer l of L has d^(L - 1 - l) of it, what comes before the layers d^L, what comes after all of
  it, as in BEiT (arXiv 2106.08254).

  Args:
    ndim, depth: axes of the parameter, and layers of its tower, along axis 0 where the path names them.

  Returns:
    a number, or for parameters of layers float32 [depth, 1, ...].
  """
  _, found = _factors(o, path)
  decay = found.get("layer_decay", 1.0)
  if _LAYERS in f"/{path}":
    return found["factor"] * jnp.float32(decay) ** jnp.arange(depth - 1, -1, -1).reshape(-1, *[1] * (ndim - 1))
  return found["factor"] * (1.0 if any(name in f"/{path}" for name in _AFTER) or not depth else decay**depth)


def _factors(o, path: str):
  """(name, entry) of the first of `o.lr_factors` that matches a parameter; ("", {"factor": 1.0}) where none does."""
  return next(((name, f) for name, f in o.lr_factors.items() if re.fullmatch(f["path"], path)), ("", {"factor": 1.0}))


def rates(config, schedule_config, steps: int, paths) -> dict[str, optax.Schedule]:
  """step -> learning rate of every group of these paths that has its own: "adam", "muon/vision" with a factor of that name, its last layer's, ..."""
  groups = {(_kind(config, p), name, found["factor"]) for p in paths for name, found in [_factors(config, p)]}
  scaled = lambda kind, factor: lambda step: factor * _schedule(config, schedule_config, steps, kind)(step)
  return {"/".join(filter(None, (kind, name))): scaled(kind, factor) for kind, name, factor in sorted(groups)}


def _kind(o, path: str) -> str:
  """Which optimizer updates a parameter."""
  return "muon" if o.name != "adamw" and muon.axes(path) else "adam"


def _schedule(o, schedule_config, steps: int, kind: str) -> optax.Schedule:
  return schedules.make(schedule_config, o.muon_learning_rate if (o.name, kind) == ("muon", "muon") else o.learning_rate, steps)


def _decays(o, path: str, value) -> bool:
  """Whether weight decay acts on a parameter."""
  if o.decayed:
    return any(re.fullmatch(pattern, path) for pattern in o.decayed)
  if o.name == "muon":
    return muon.axes(path) is not None
  return value.ndim >= 2 and not path.endswith(("_bias", "scale", "bias"))


def _moments_in(dtype: str, inner: optax.GradientTransformation) -> optax.GradientTransformation:
  """`inner` with the moments of its parameters kept in `dtype` between steps; a step computes in float32."""

  def cast(state, names, to):
    of_parameter = lambda at: any(getattr(part, "key", None) in names for part in at)
    return jax.tree_util.tree_map_with_path(lambda at, x: x.astype(to) if of_parameter(at) else x, state)

  def update(updates, state, params=None):
    updates, state = inner.update(updates, cast(state, updates, jnp.float32), params)
    return updates, cast(state, updates, dtype)

  return optax.GradientTransformation(lambda params: cast(inner.init(params), params, dtype), update)
