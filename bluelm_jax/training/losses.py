"""Losses of every token of a batch, by objective.

Shapes: B batch, S sequence, D width, V vocabulary.
"""

from typing import NamedTuple

import flax.linen as nn
import jax

from bluelm_jax.data.batch import PackedBatch
from bluelm_jax.kernels import chunked_losses
from bluelm_jax.kernels import chunked_top
from bluelm_jax.kernels.cross_entropy import token_log_probs
from bluelm_jax.models.decoder import logits
from bluelm_jax.sharding import rules


class Distillation(NamedTuple):
  """What the objective "distill" adds.

  Attributes:
    teacher: its module, whose parameters come with every step; None where a store's words come with every batch.
    temperature: of both distributions in the divergence.
    share: of the divergence in the loss; the rest is cross-entropy.
  """

  teacher: nn.Module | None
  temperature: float
  share: float


def apply_batch(model, params, batch: PackedBatch, method: str = "__call__", mutable=False):
  """What a method of the model makes of a batch, "__call__" its logits [B, S, V]; text-only models take no tiles.

  With `mutable` collections, (that, variables), as `Module.apply`.
  """
  kwargs = {"positions": batch.positions, "segment_ids": batch.segment_ids, "mutable": mutable}
  if batch.tiles.shape[1]:
    kwargs |= {"tiles": batch.tiles, "vision_index": batch.vision_index, "tile_places": batch.tile_places}
  return model.apply({"params": params}, batch.tokens, **kwargs, method=method)


def token_losses(model, params, batch: PackedBatch, objective: str = "lm", chunks: int = 1):
  """Weighted negative log-likelihood in nats of every target, float32 [B, S].

  "lm" predicts the next token. "dense" reads the targets as names of the visual tokens themselves, so
  that positions hold no text and the decoder's layers are left out.

  Args:
    chunks: in which the vocabulary's logits are made; 1 keeps them for the backward pass.
  """
  if objective == "dense":
    x_BSD, table_DV = model.apply({"params": params}, batch.tiles, batch.vision_index, batch.tile_places, method="name_visual_tokens")
  else:
    x_BSD, table_DV, _ = apply_batch(model, params, batch, "readout")
  if chunks == 1:
    log_probs_BS = token_log_probs(logits(x_BSD, table_DV), batch.targets)
  else:
    log_probs_BS = chunked_losses.token_log_probs(x_BSD, table_DV, batch.targets, cut(chunks))
  return -log_probs_BS * batch.loss_weights


def distilled_losses(model, params, batch: PackedBatch, distillation: Distillation, teacher_params, chunks: int = 1):
  """Of every target (1 - share) cross-entropy + share temperature^2 KL(teacher || student), weighted, float32 [B, S].

  As Hinton et al. have it (arXiv 1503.02531): the factor keeps the divergence's gradients in scale with the other's. Of a
  stored teacher, the divergence is that of its likeliest tokens and all others together.

  Returns:
    the losses, and their parts by name, weighted too, in nats: "cross_entropy", and "divergence" without its factors.
  """
  x_BSD, table_DV, _ = apply_batch(model, params, batch, "readout")
  if distillation.teacher is None:
    divergence, taught = chunked_top.distill, batch.teacher
  else:
    divergence, taught = chunked_losses.distill, apply_batch(distillation.teacher, teacher_params, batch, "readout")[:2]
  log_probs_BS, divergence_BS = divergence(x_BSD, table_DV, batch.targets, *taught, distillation.temperature, cut(chunks))
  parts = {"cross_entropy": -log_probs_BS * batch.loss_weights, "divergence": divergence_BS * batch.loss_weights}
  share = distillation.share
  return (1 - share) * parts["cross_entropy"] + share * distillation.temperature**2 * parts["divergence"], parts


def cut(chunks: int) -> chunked_losses.Cut:
  """Chunks of a vocabulary that lies on the mesh in context."""
  mesh = jax.sharding.get_abstract_mesh()
  shards = 1 if mesh.empty else rules.ways(mesh, "vocab")
  return chunked_losses.Cut(chunks, shards)
