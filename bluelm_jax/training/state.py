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


_BY_TOKEN = ("tokens", "targets", "loss_weights", "segment_ids", "positions", "vision_index", "sources", "teacher")


class TrainState(NamedTuple):
  """step int32 scalar; parameters flat by path, the frozen ones apart."""

  step: jax.Array
  trainable: dict[str, jax.Array]
  frozen: dict[str, jax.Array]
  opt_state: Any

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


def make_loss(model, sources: int, objective: str = "lm", chunks: int = 1, distillation: losses.Distillation | None = None):
  """Returns loss(trainable, frozen, batch, teacher=None) -> (sum of the losses, counts): what batches add up to, for one division at the end.

  Args:
    sources: of the mixture; "loss_sums" and "loss_weights" of the counts, float32 [sources], are theirs.
    chunks: of the vocabulary; see `losses`.
    distillation: for the objective "distill"; the loss then takes the teacher's parameters, and "loss_parts/" are among the counts.
  """

  def loss(trainable, frozen, batch: PackedBatch, teacher=None):
    params = optimizer_lib.merge(trainable, frozen)
    if distillation:
      losses_BS, parts = losses.distilled_losses(model, params, batch, distillation, teacher, chunks)
    else:
      losses_BS, parts = losses.token_losses(model, params, batch, objective, chunks), {}
    counts = {
        "loss_tokens": jnp.sum(batch.loss_weights),
        "loss_sums": by_source(losses_BS, batch, sources),
        "loss_weights": by_source(batch.loss_weights, batch, sources),
        **{f"loss_parts/{name}": jnp.sum(part_BS) for name, part_BS in parts.items()},
        "tokens": jnp.sum(batch.segment_ids > 0),
        "image_tokens": jnp.sum(batch.vision_index >= 0),
    }
    return jnp.sum(losses_BS), counts

  return loss


def make_train_step(
    model, tx: optax.GradientTransformation, sources: int, objective: str = "lm", layout: str = "none", chunks: int = 1,
    distillation: losses.Distillation | None = None):
  """Returns step(state, batch, teacher=None) -> (state, metrics); the loss is one global sum over one global count.

  Args:
    sources, objective, chunks, distillation: see `make_loss`, whose counts are metrics.
    layout: of rows over context ranks, a name of `kernels.attention.layouts`.
  """
  loss_sum = make_loss(model, sources, objective, chunks, distillation)

  def step(state: TrainState, batch: PackedBatch, teacher=None):
    batch = arrange(batch, layout)

    def mean(trainable):
      total, counts = loss_sum(trainable, state.frozen, batch, teacher)
      return total / jnp.maximum(counts["loss_tokens"], 1.0), counts

    (loss, counts), grads = jax.value_and_grad(mean, has_aux=True)(state.trainable)
    return update(tx, state, grads), {"loss": loss, "grad_norm": optax.tree.norm(grads), **counts}

  return step


def update(tx: optax.GradientTransformation, state: TrainState, grads) -> TrainState:
  """The state after one step of the optimizer."""
  updates, opt_state = tx.update(grads, state.opt_state, state.trainable)
  return TrainState(state.step + 1, optax.apply_updates(state.trainable, updates), state.frozen, opt_state)
