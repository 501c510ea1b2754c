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


_BY_TOKEN = ("tokens", "targets", "loss_weights", "segment_ids", "positions", "vision_index", "sources")


class TrainState(NamedTuple):
  """step int32 scalar; parameters flat by path, the frozen ones apart."""

  step: jax.Array
  trainable: dict[str, jax.Array]
  frozen: dict[str, jax.Array]
  opt_state: Any

  @property
  def params(self):
    return optimizer_lib.merge(self.trainable, self.frozen)


def arrange(batch: PackedBatch, layout: str) -> PackedBatch:
  """The batch with the tokens of each row in the order the context ranks of the mesh hold them.

  Visual tokens are placed by `vision_index`, which moves along, so this equals permuting after they are placed.
  The loss is a sum over positions and does not change; `layouts.undo` brings other outputs back in order.
  """
  mesh = jax.sharding.get_abstract_mesh()
  ranks = 1 if mesh.empty else rules.ways(mesh, "sequence")
  if ranks == 1:
    return batch
  order_BS = layouts.order(layout, batch.positions, batch.segment_ids, ranks)
  return batch._replace(**{name: rules.constrain(layouts.permute(getattr(batch, name), order_BS), "batch", "sequence") for name in _BY_TOKEN})


def by_source(values_BS, batch: PackedBatch, sources: int):
  """Sums of values over the tokens of each source, float32 [sources]."""
  return jnp.stack([jnp.sum(jnp.where(batch.sources == i, values_BS, 0.0)) for i in range(sources)])


def make_train_step(
    model, tx: optax.GradientTransformation, sources: int, objective: str = "lm", layout: str = "none", chunks: int = 1,
    distillation: losses.Distillation | None = None):
  """Returns step(state, batch, teacher=None) -> (state, metrics); the loss is one global sum over one global count.

  Args:
    sources: of the mixture; "loss_sums" and "loss_weights" in the metrics, float32 [sources], are theirs.
    layout: of rows over context ranks, a name of `kernels.attention.layouts`.
    chunks: of the vocabulary; see `losses`.
    distillation: for the objective "distill"; a step then takes the teacher's parameters, and "loss_parts/" in the
      metrics are sums.
  """

  def step(state: TrainState, batch: PackedBatch, teacher=None):
    batch = arrange(batch, layout)
    count = jnp.sum(batch.loss_weights)

    def loss_fn(trainable):
      params = optimizer_lib.merge(trainable, state.frozen)
      if distillation:
        losses_BS, parts = losses.distilled_losses(model, params, batch, distillation, teacher, chunks)
      else:
        losses_BS, parts = losses.token_losses(model, params, batch, objective, chunks), {}
      return jnp.sum(losses_BS) / jnp.maximum(count, 1.0), (losses_BS, parts)

    (loss, (losses_BS, parts)), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.trainable)
    updates, opt_state = tx.update(grads, state.opt_state, state.trainable)
    trainable = optax.apply_updates(state.trainable, updates)
    metrics = {
        "loss": loss,
        "loss_tokens": count,
        "loss_sums": by_source(losses_BS, batch, sources),
        "loss_weights": by_source(batch.loss_weights, batch, sources),
        **{f"loss_parts/{name}": jnp.sum(part_BS) for name, part_BS in parts.items()},
        "tokens": jnp.sum(batch.segment_ids > 0),
        "image_tokens": jnp.sum(batch.vision_index >= 0),
        "grad_norm": optax.tree.norm(grads),
    }
    return TrainState(state.step + 1, trainable, state.frozen, opt_state), metrics

  return step
