"""Steps of several batches: their gradients are added up, then one update is made of them.

A step of k batches is the step of one batch that holds all their rows: the loss is one sum over one count, divided
once, at the end. Two programs serve every k, so k may change as training goes on.
"""

from typing import Any, Callable, NamedTuple, Sequence

import jax
import jax.numpy as jnp
import optax

from bluelm_jax.sharding import chips
from bluelm_jax.sharding import rules
from bluelm_jax.training import spikes
from bluelm_jax.training import state as state_lib
from bluelm_jax.training import teacher as teacher_lib
from bluelm_jax.training import watch


class Sums(NamedTuple):
  """What the batches of a step add up to.

  Attributes:
    gradients: of the sum of the losses, float32, flat by path.
    counts, activations: of `state.make_loss`.
  """

  gradients: dict[str, jax.Array]
  counts: dict[str, jax.Array]
  activations: dict[str, dict[str, jax.Array]]


class Programs(NamedTuple):
  """Compiled at their first calls.

  Attributes:
    start: (state, batch, teacher) -> Sums of nothing; the teacher's parameters are None where a stage does not distil.
    add: (state, sums, batch, teacher) -> Sums, in the memory of the old ones.
    apply: (state, sums) -> (state, Sums of nothing, metrics as `state.make_train_step` has them).
  """

  start: Callable[..., Sums]
  add: Callable[..., Sums]
  apply: Callable[..., tuple[state_lib.TrainState, Sums, dict[str, Any]]]


def batches(knots: Sequence[tuple[int, int]], step: int) -> int:
  """Of the step after `step`; knots are ((step, batches), ...)."""
  return [count for at, count in knots if at <= step][-1]


def total(knots: Sequence[tuple[int, int]], steps: int) -> int:
  """Batches of the first `steps` steps."""
  ends = [at for at, _ in knots[1:]] + [steps]
  return sum(count * max(min(end, steps) - at, 0) for (at, count), end in zip(knots, ends))


def most(knots: Sequence[tuple[int, int]]) -> int:
  return max(count for _, count in knots)


def check(knots) -> None:
  """Raises ValueError on what is no rising ((step, batches), ...) from step 0."""
  whole = lambda v: isinstance(v, int) and not isinstance(v, bool) and 0 <= v < 2**31
  pairs = [k for k in knots if isinstance(k, (list, tuple)) and len(k) == 2 and all(map(whole, k)) and k[1]]
  steps = [step for step, _ in pairs]
  if len(pairs) != len(knots) or sorted(set(steps)) != steps or steps[:1] != [0]:
    raise ValueError(f"data.accumulate = {knots!r}; use ((0, batches), (step, batches), ...) with rising steps and at least one batch")


def programs(config, model, tx: optax.GradientTransformation, shardings: state_lib.TrainState, pieces: dict) -> Programs:
  """The programs of a stage; gradients lie as `pieces` say, flat by path, and the state stays where `shardings` say."""
  distillation = teacher_lib.distillation(config, model.config)
  loss_sum = state_lib.make_loss(model, len(config.data.sources), config.objective, config.loss_chunks, distillation)
  rule, watcher = spikes.Rule(**config.spikes), watch.watcher(config, shardings.trainable)
  watched = lambda state: watcher and watcher.due(state.step)

  def start(state, batch, teacher=None):
    beside = jax.eval_shape(loss_sum, state.trainable, state.frozen, batch, teacher, watched(state))[1]
    return Sums({p: jnp.zeros(x.shape, jnp.float32) for p, x in state.trainable.items()}, *jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), beside))

  def add(state, sums, batch, teacher=None):
    batch = state_lib.arrange(batch, config.layout)
    (_, (counts, activations)), grads = jax.value_and_grad(loss_sum, has_aux=True)(state.trainable, state.frozen, batch, teacher, watched(state))
    added = lambda a, b: jax.tree.map(jnp.add, a, b)
    return Sums(added(sums.gradients, grads), added(sums.counts, counts), watch.join(sums.activations, activations))

  def apply(state, sums):
    count = jnp.maximum(sums.counts["loss_tokens"], 1.0)
    grads = {p: (g / count).astype(state.trainable[p].dtype) for p, g in sums.gradients.items()}
    loss = jnp.sum(sums.counts["loss_sums"]) / count
    state, metrics = state_lib.update(tx, state, grads, loss, sums.counts, sums.activations, rule, watcher)
    return state, jax.tree.map(jnp.zeros_like, sums), metrics

  mesh = shardings.step.mesh
  options = chips.compiler_options(mesh.devices.flat[0].device_kind)
  places = Sums(pieces, rules.replicated(mesh), rules.replicated(mesh))
  # `add` needs no moments, yet they lie in memory meanwhile: as arguments they count where a compiler says what it takes.
  return Programs(
      jax.jit(start, out_shardings=places, compiler_options=options),
      jax.jit(add, donate_argnums=1, out_shardings=places, keep_unused=True, compiler_options=options),
      jax.jit(apply, donate_argnums=(0, 1), out_shardings=(shardings, places, None), compiler_options=options))
