"""Train state and the train step.

Shapes: B batch, S sequence.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from bluelm_jax.data.batch import PackedBatch
from bluelm_jax.kernels.attention import layouts
from bluelm_jax.sharding import rules
from bluelm_jax.training import losses
from bluelm_jax.training import optimizer as optimizer_lib
from bluelm_jax.training import spikes
from bluelm_jax.training import watch


_BY_TOKEN = ("tokens", "targets", "loss_weights", "segment_ids", "positions", "vision_index", "sources", "teacher")


class TrainState(NamedTuple):
  """step int32 scalar; parameters flat by path, the frozen ones apart; what `spikes` remembers, where a stage asks it."""

  step: jax.Array
  trainable: dict[str, jax.Array]
  frozen: dict[str, jax.Array]
  opt_state: Any
  guard: spikes.Guard | None = None

  @property
  def params(self):
    return optimizer_lib.merge(self.trainable, self.frozen)


def order(batch: PackedBatch, layout: str):
  """int32 [B, S]: the tokens of each row in the order the context ranks of the mesh hold them; None where that is their own."""
  mesh = jax.sharding.get_abstract_mesh()
  ranks = 1 if mesh.empty else rules.ways(mesh, "sequence")
  return None if ranks == 1 else layouts.order(layout, batch.positions, batch.segment_ids, ranks)


def arrange(batch: PackedBatch, layout: str) -> PackedBatch:
  """The batch with the tokens of each row in the order of `order`.

  Visual tokens are placed by `vision_index`, which moves along, so this equals permuting after they are placed.
  The loss is a sum over positions and does not change; `layouts.undo` brings other outputs back in order.
  """
  order_BS = order(batch, layout)
  if order_BS is None:
    return batch
  move = lambda x: rules.constrain(layouts.permute(x, order_BS), "batch", "sequence", *[None] * (x.ndim - 2))
  return batch._replace(**{name: jax.tree.map(move, getattr(batch, name)) for name in _BY_TOKEN})


def by_source(values_BS, batch: PackedBatch, sources: int):
  """Sums of values over the tokens of each source, float32 [sources]."""
  return jnp.stack([jnp.sum(jnp.where(batch.sources == i, values_BS, 0.0)) for i in range(sources)])


def held(batch: PackedBatch) -> dict[str, jax.Array]:
  """What a batch holds beside padding: tokens, those of images among them, and pairs of tokens that see each other, float32."""
  return {
      "tokens": jnp.sum(batch.segment_ids > 0),
      "image_tokens": jnp.sum(batch.vision_index >= 0),
      "pairs": jnp.sum(jnp.where(batch.segment_ids > 0, batch.positions + 1.0, 0.0)),  # a token sees those before it, and itself
  }


def make_loss(model, sources: int, objective: str = "lm", chunks: int = 1, distillation: losses.Distillation | None = None):
  """Returns loss(trainable, frozen, batch, teacher=None, watched=None) -> (sum of the losses, (counts, activations)).

  That is what batches add up to, for one division at the end. Where `watched` is a boolean array, the activations are `watch.Taps.found`.

  Args:
    sources: of the mixture; "loss_sums" and "loss_weights" of the counts, float32 [sources], are theirs.
    chunks: of the vocabulary; see `losses`.
    distillation: for the objective "distill"; the loss then takes the teacher's parameters, and "loss_parts/" are among the counts.
  """

  def loss(trainable, frozen, batch: PackedBatch, teacher=None, watched=None):
    params = optimizer_lib.merge(trainable, frozen)
    shown = model if watched is None else watch.Taps(model, watched, batch.segment_ids > 0)
    if distillation:
      losses_BS, parts = losses.distilled_losses(shown, params, batch, distillation, teacher, chunks)
    else:
      losses_BS, parts = losses.token_losses(shown, params, batch, objective, chunks), {}
    counts = {
        "loss_tokens": jnp.sum(batch.loss_weights),
        "loss_sums": by_source(losses_BS, batch, sources),
        "loss_weights": by_source(batch.loss_weights, batch, sources),
        **{f"loss_parts/{name}": jnp.sum(part_BS) for name, part_BS in parts.items()},
        **held(batch),
    }
    return jnp.sum(losses_BS), (counts, {} if watched is None else shown.found)

  return loss


def make_train_step(
    model, tx: optax.GradientTransformation, sources: int, objective: str = "lm", layout: str = "none", chunks: int = 1,
    distillation: losses.Distillation | None = None, rule: spikes.Rule | None = None, watcher: watch.Watcher | None = None):
  """Returns step(state, batch, teacher=None) -> (state, metrics); the loss is one global sum over one global count.

  Args:
    sources, objective, chunks, distillation: see `make_loss`, whose counts are metrics.
    layout: of rows over context ranks, a name of `kernels.attention.layouts`.
    rule, watcher: see `update`.
  """
  loss_sum = make_loss(model, sources, objective, chunks, distillation)

  def step(state: TrainState, batch: PackedBatch, teacher=None):
    batch = arrange(batch, layout)

    def mean(trainable):
      total, (counts, activations) = loss_sum(trainable, state.frozen, batch, teacher, watcher and watcher.due(state.step))
      return total / jnp.maximum(counts["loss_tokens"], 1.0), (counts, activations)

    (loss, (counts, activations)), grads = jax.value_and_grad(mean, has_aux=True)(state.trainable)
    return update(tx, state, grads, loss, counts, activations, rule, watcher)

  return step


def update(tx: optax.GradientTransformation, state: TrainState, grads, loss, counts, activations, rule=None, watcher=None):
  """(state, metrics) after one step of the optimizer.

  Args:
    counts, activations: of the step's batches; see `make_loss`.
    rule: a step that it finds bad leaves parameters and optimizer as they were. Adds "bad_in_a_row" and "grad_norm_mean" to the metrics.
    watcher: adds "watch", what `watch.before` and `after` find.
  """
  norm = optax.tree.norm(grads)
  metrics = {"loss": loss, "grad_norm": norm, **counts}
  if watcher:
    grads, seen = watch.before(watcher, state, grads, activations)
  updates, opt_state = tx.update(grads, state.opt_state, state.trainable)
  trainable, guard = optax.apply_updates(state.trainable, updates), state.guard
  if rule:
    bad, guard = spikes.judge(rule, state.guard, state.step + 1, loss, norm)
    trainable, opt_state = spikes.unless(bad, (state.trainable, state.opt_state), (trainable, opt_state))
    metrics |= {"bad_in_a_row": guard.row, "grad_norm_mean": guard.mean}
  if watcher:
    metrics["watch"] = watch.after(watcher, state.step, seen, updates, opt_state)
  return TrainState(state.step + 1, trainable, state.frozen, opt_state, guard), metrics
