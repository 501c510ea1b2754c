"""What goes on inside a train step: norms by group of parameters, activations by layer, learning rates.

All is computed inside the step's one program. A second program would compile twice, for minutes at full size. What lies in memory
anyhow is read under a condition on the step's number, gradients before the update and moments after it; the updates themselves never
lie there together, so their squares are summed as they are made, on every step.

Shapes: B batch, S sequence, D width, L layers; tiles and their patches stand for B and S in a vision tower.
"""

import re
from typing import Callable, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from bluelm_jax.models import layers
from bluelm_jax.training import optimizer as optimizer_lib

# Groups where a config names none, as far as they match: all, then by part and by kind.
GROUPS = {
    "all": ".*", "vision": "vision/.*", "adapter": "adapter/.*", "decoder": "decoder/.*",
    "tables": ".*(embedding|lm_head|position|tile_places)", "attention": ".*/attention/.*", "mlp": ".*/mlp/.*", "norms": ".*_norm/.*"}
_TAPS = {"block": "decoder", "tiles": "vision"}  # taps on what a layer puts out, and the part of the model whose layer it is
_MOMENTS = {"mu": "first_moment", "trace": "first_moment", "nu": "second_moment"}  # optax's names; Muon has the first alone


class Watcher(NamedTuple):
  """What is watched.

  Attributes:
    every: steps.
    groups: trainable paths by name.
    rates: step -> learning rate, by name.
  """

  every: int
  groups: dict[str, list[str]]
  rates: dict[str, optax.Schedule]

  def due(self, step):
    """Whether the step after `step` is watched."""
    return (step + 1) % self.every == 0


def watcher(config, trainable) -> Watcher | None:
  """Of a stage that trains these paths; None where it watches nothing."""
  if not config.watch.every:
    return None
  patterns = {name: _several(p) for name, p in (config.watch.groups or GROUPS).items()}
  groups = {name: [path for path in trainable if any(re.fullmatch(p, path) for p in found)] for name, found in patterns.items()}
  rates = optimizer_lib.rates(config.optimizer, config.schedule, config.steps, trainable)
  return Watcher(config.watch.every, {name: members for name, members in groups.items() if members}, rates)


def _several(patterns) -> tuple[str, ...]:
  return (patterns,) if isinstance(patterns, str) else patterns


def check_groups(config, paths) -> None:
  """Raises ValueError on a pattern that matches no parameter."""
  for name, patterns in config.watch.groups.items():
    optimizer_lib.check_patterns(f"watch.groups.{name}", _several(patterns), paths)


def before(w: Watcher, state, grads, activations: dict):
  """(grads, float32 numbers by name: scalars, and [L] of each layer), the latter 0 on a step that is not watched.

  L2 norms are over all trainable parameters of a group, on all devices: here of the parameters before the update and the
  gradients before clipping.

  Args:
    activations: of `Taps`.
  """

  def numbers():
    schedules = jax.tree.leaves(state.opt_state, is_leaf=_is_schedule)
    count = next(s.count for s in schedules if _is_schedule(s))
    rates = {f"learning_rate/{name}": jnp.float32(rate(count)) for name, rate in w.rates.items()}
    return rates | _norms(w, {"param": _squares(state.trainable), "gradient": _squares(grads)})

  # First the condition, then the update, which takes over the memory of what the condition reads.
  grads, found = jax.lax.optimization_barrier((grads, _if_due(w, state.step, numbers)))
  for part, sums in activations.items():
    found |= {f"activation_rms/{part}": jnp.sqrt(sums["squares"] / jnp.maximum(sums["count"], 1.0)), f"activation_max/{part}": sums["largest"]}
  return grads, found


def after(w: Watcher, step, found: dict, updates, opt_state):
  """`found` of `before` with the norms of the updates, also where a bad step refuses them, and of the moments that are kept; and
  the ratio of update to parameter."""
  found |= jax.tree.map(lambda x: jnp.where(w.due(step), x, 0.0), _norms(w, {"update": _squares(updates)}))
  for name in w.groups:
    found[f"update_ratio/{name}"] = found[f"update_norm/{name}"] / jnp.where(w.due(step), found[f"param_norm/{name}"], 1.0)
  moments = _moments(opt_state, updates)
  return found | _if_due(w, step, lambda: _norms(w, {kind: _squares(tree) for kind, tree in moments.items()}))


def _if_due(w, step, numbers):
  """What `numbers` gives, or as many zeros."""
  zeros = lambda: jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(numbers))
  return jax.lax.cond(w.due(step), numbers, zeros)


def _squares(tree):
  return {p: jnp.sum(jnp.square(x.astype(jnp.float32))) for p, x in tree.items()}


def _norms(w, squares):
  """{kind_norm/group: root of the group's summed squares} of {kind: {path: sum of squares}}, where a group has any."""
  parts = {f"{kind}_norm/{name}": [of_kind[p] for p in members if p in of_kind] for name, members in w.groups.items() for kind, of_kind in squares.items()}
  return {name: jnp.sqrt(sum(found)) for name, found in parts.items() if found}


def _is_schedule(node) -> bool:
  return isinstance(node, optax.ScaleByScheduleState)


def _moments(opt_state, trainable) -> dict[str, dict[str, jax.Array]]:
  """{"first_moment": {path: moment}, "second_moment": ...} of whatever optimizers there are."""
  found = {}
  for at, x in jax.tree_util.tree_leaves_with_path(opt_state):
    path = getattr(at[-1], "key", None)
    names = [_MOMENTS[part.name] for part in at if getattr(part, "name", None) in _MOMENTS]
    if path in trainable and names:
      found.setdefault(names[-1], {})[path] = x
  return found


class Taps:
  """Stands in for a model in a loss: its `apply` leaves sums over what each layer puts out in `found`; where not watched, all but
  "count" are 0.

  Padding tokens do not count; empty tile slots do. By part of the model, float32 [L]: "squares" and "count" of the numbers, and the
  "largest" size of one.
  """

  def __init__(self, model, watched, real_BS):
    self._model, self._watched, self._real_BS = model, watched, real_BS
    self.found = {}

  def apply(self, variables, *args, mutable=False, **kwargs):
    assert not mutable
    with nn.intercept_methods(self._intercept):
      out, seen = self._model.apply(variables, *args, mutable=["intermediates"], **kwargs)
    for path, sums in optimizer_lib.paths(seen.get("intermediates", {})).items():
      *_, tap, name = path.split("/")
      self.found.setdefault(_TAPS[tap], {})[name] = sums
    return out

  def _intercept(self, call, args, kwargs, context):
    module = context.module
    if isinstance(module, layers.Tap) and module.name in _TAPS:
      x = jax.lax.stop_gradient(args[-1])
      real = self._real_BS if module.name == "block" else jnp.ones(x.shape[:2], bool)
      sums = jax.lax.cond(self._watched, _sums, lambda *_: {"squares": jnp.float32(0), "largest": jnp.float32(0)}, x, real)
      for name, value in {**sums, "count": jnp.sum(real, dtype=jnp.float32) * x.shape[-1]}.items():
        module.sow("intermediates", name, value, reduce_fn=lambda _, x: x, init_fn=lambda: None)
    return call(*args, **kwargs)


def _sums(x_BSD, real_BS) -> dict[str, jax.Array]:
  of_tokens = lambda values_BS: jnp.where(real_BS, values_BS, 0.0)
  sizes_BSD = jnp.abs(x_BSD.astype(jnp.float32))
  return {"squares": jnp.sum(of_tokens(jnp.sum(sizes_BSD**2, axis=-1))), "largest": jnp.max(of_tokens(jnp.max(sizes_BSD, axis=-1)))}


def join(a: dict, b: dict) -> dict:
  """`Taps.found` of two batches, or of parts of one, together."""
  return {part: {name: (jnp.maximum if name == "largest" else jnp.add)(x, b[part][name]) for name, x in sums.items()} for part, sums in a.items()}


def scalars(found: dict) -> dict[str, float]:
  """The numbers of `before` and `after` by their names in the log, layer by layer; those that are no finite numbers are left out."""
  named = {}
  for name, value in found.items():
    values = {name: value} if np.ndim(value) == 0 else {f"{name}/{i:02d}": v for i, v in enumerate(value)}
    named |= {f"watch/{n}": float(v) for n, v in values.items() if np.isfinite(v)}
  return named
