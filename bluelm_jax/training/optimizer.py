"""Schedules, and the optimizer a stage config describes."""

import re

import flax.traverse_util
import jax
import optax


def make_schedule(config, peak: float, steps: int) -> optax.Schedule:
  """step -> learning rate; `config` has kind, warmup, decay_share, final."""
  warmup = min(config.warmup, steps)
  final = peak * config.final
  rest = max(steps - warmup, 1)
  if config.kind == "constant":
    body = optax.constant_schedule(peak)
  elif config.kind == "cosine":
    body = optax.cosine_decay_schedule(peak, rest, config.final)
  elif config.kind == "linear":
    body = optax.linear_schedule(peak, final, rest)
  elif config.kind == "wsd":
    decay = max(int(steps * config.decay_share), 1)
    body = optax.join_schedules([optax.constant_schedule(peak), optax.linear_schedule(peak, final, decay)], [max(rest - decay, 0)])
  else:
    raise ValueError(f"schedule kind {config.kind!r} is unknown; use constant, cosine, linear or wsd")
  return optax.join_schedules([optax.linear_schedule(0.0, peak, max(warmup, 1)), body], [warmup])


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


def _matrix_dims(path: str):
  """(input axes, output axes) of a weight as Muon sees it, or None for what AdamW updates.

  Parameters under `layers` carry the layer on axis 0, which Muon treats as a batch.
  """
  leaf = path.rsplit("/", 1)[-1]
  first = 1 if "/layers/" in f"/{path}" else 0
  if leaf in ("q", "k", "v"):
    return (first,), (first + 1, first + 2)
  if leaf == "o":
    return (first, first + 1), (first + 2,)
  if leaf in ("gate", "up", "down"):
    return (first,), (first + 1,)
  return None


def make_optimizer(config, schedule_config, steps: int) -> optax.GradientTransformation:
  """AdamW or Muon over a flat {path: array} dict, with clipping and per-path learning-rate factors."""
  o = config
  schedule = make_schedule(schedule_config, o.learning_rate, steps)

  def decays(params):
    return {p: v.ndim >= 2 and not p.endswith(("_bias", "scale", "bias")) for p, v in params.items()}

  if o.name == "adamw":
    update = optax.adamw(schedule, b1=o.b1, b2=o.b2, eps=o.eps, weight_decay=o.weight_decay, mask=decays)
  elif o.name == "muon":

    def dimensions(params):
      return {p: (d := _matrix_dims(p)) and optax.contrib.MuonDimensionNumbers(*d) for p in params}

    update = optax.contrib.muon(
        make_schedule(schedule_config, o.muon_learning_rate, steps), adam_b1=o.b1, adam_b2=o.b2, eps=o.eps,
        weight_decay=o.weight_decay, adam_learning_rate=schedule, muon_weight_dimension_numbers=dimensions)
  else:
    raise ValueError(f"optimizer {o.name!r} is unknown; use adamw or muon")

  factors = [(f["path"], f["factor"]) for f in o.lr_factors.values()]

  def scale(updates, params=None):
    del params
    return {p: u * next((f for pattern, f in factors if re.fullmatch(pattern, p)), 1.0) for p, u in updates.items()}

  return optax.chain(optax.clip_by_global_norm(o.clip_norm), update, optax.stateless(scale))
