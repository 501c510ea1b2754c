"""A teacher's k likeliest tokens, and a student's divergence from what is known of it by them.

The distribution over V tokens is coarsened to K + 1 outcomes: the k likeliest, and all others together. Neither
function holds logits [B, S, V]; see `chunks`.

Shapes: B batch, S sequence, D width, V vocabulary, K tokens kept, N = K + 1 outcomes, T shards, W columns of a chunk on
a shard.
"""

import functools

import einops
import jax
import jax.numpy as jnp

from bluelm_jax.kernels import chunks
from bluelm_jax.kernels.chunks import Cut

_LEAST = 1e-30  # of a probability whose logarithm is taken
_OUT = -1e30  # a logit that counts as nothing, finite so that differences of two are numbers


def top(x_BSD, table_DV, targets_BS, k: int, temperature: float, cut: Cut):
  """Of a teacher x @ table: its k likeliest tokens at every position.

  Returns:
    log-probabilities [B, S, N] in float32 of softmax(logits / temperature): of these tokens, the likeliest first, and of
      all others together, 1 - sum p, which float32 knows to 1e-7;
    their ids, int32 [B, S, K];
    log p(target) [B, S] at temperature 1.

  Raises:
    ValueError: a vocabulary that does not divide, or holds fewer than k tokens.
  """
  if not 1 <= k <= table_DV.shape[1]:
    raise ValueError(f"{k} likeliest tokens are not to be had from a vocabulary of {table_DV.shape[1]}; use at least 1 and no more than that")

  def add(carry, chunk):
    sums, cool, best_BSTK, ids_BSTK, picked_BST = carry
    table_DTW, ids_TW = chunk
    logits_BSTW = chunks.logits(x_BSD, table_DTW)
    picked_BST += jnp.sum(jnp.where(chunks.chosen(targets_BS, ids_TW), logits_BSTW, 0.0), -1)
    s_BSTW = logits_BSTW / temperature
    best_BSTK, at_BSTK = jax.lax.top_k(jnp.concatenate([best_BSTK, s_BSTW], -1), k)
    before_BSTK = jnp.take_along_axis(ids_BSTK, jnp.minimum(at_BSTK, k - 1), -1)
    ids_BSTK = jnp.where(at_BSTK < k, before_BSTK, ids_TW[:, :1] + at_BSTK - k)
    return (chunks.more(sums, logits_BSTW), chunks.more(cool, s_BSTW), best_BSTK, ids_BSTK, picked_BST), None

  zero_BST = chunks.zero(x_BSD, cut)
  nothing_BSTK = jnp.broadcast_to(zero_BST[..., None], (*zero_BST.shape, k))
  start = chunks.none(zero_BST), chunks.none(zero_BST), nothing_BSTK - jnp.inf, nothing_BSTK.astype(jnp.int32), zero_BST
  (sums, cool, best_BSTK, ids_BSTK, picked_BST), _ = jax.lax.scan(add, start, chunks.split(table_DV, cut))
  flat = lambda x_BSTK: einops.rearrange(x_BSTK, "b s t k -> b s (t k)")
  best_BSK, at_BSK = jax.lax.top_k(flat(best_BSTK), k)
  log_probs_BSK = best_BSK - chunks.total(*cool)[0][..., None]
  rest_BS1 = 1.0 - jnp.sum(jnp.exp(log_probs_BSK), -1, keepdims=True)
  log_probs_BSN = jnp.concatenate([log_probs_BSK, jnp.log(jnp.maximum(rest_BS1, _LEAST))], -1)
  return log_probs_BSN, jnp.take_along_axis(flat(ids_BSTK), at_BSK, -1), jnp.sum(picked_BST, -1) - chunks.total(*sums)[0]


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def distill(x_BSD, table_DV, targets_BS, log_probs_BSN, ids_BSK, temperature: float, cut: Cut):
  """Of a student x @ table beside what `top` says: ([B, S] log p(target), [B, S] KL(teacher || student) in nats).

  The divergence is that of the coarsened distributions at this temperature, which must be the teacher's. It is at most
  the whole one (data-processing inequality) and equals it where K = V. The teacher's probabilities are scaled to a sum
  of 1, which rounding may have changed. The other tokens' share is summed on its own, not as 1 less the rest.

  Raises:
    ValueError: a vocabulary that does not divide.
  """
  return _forward(x_BSD, table_DV, targets_BS, log_probs_BSN, ids_BSK, temperature, cut)[0]


def _teacher(log_probs_BSN, table_DV, dtype):
  """(log p [B, S, K] of the tokens, log p [B, S] of all others or None where there are none)."""
  log_probs_BSN = log_probs_BSN.astype(dtype)
  if log_probs_BSN.shape[-1] > table_DV.shape[1]:
    return jax.nn.log_softmax(log_probs_BSN[..., :-1]), None
  log_probs_BSN = jax.nn.log_softmax(log_probs_BSN)
  return log_probs_BSN[..., :-1], log_probs_BSN[..., -1]


def _forward(x_BSD, table_DV, targets_BS, log_probs_BSN, ids_BSK, temperature, cut):
  log_p_BSK, log_rest_BS = _teacher(log_probs_BSN, table_DV, chunks.wide(x_BSD))
  p_BSK = jnp.exp(log_p_BSK)

  def add(carry, chunk):
    sums, cool, others, cross_BST, picked_BST = carry
    logits_BSTW, chosen = chunks.logits(x_BSD, chunk[0]), chunks.chosen(targets_BS, chunk[1])
    picked_BST += jnp.sum(jnp.where(chosen, logits_BSTW, 0.0), -1)
    s_BSTW, p_BSTW = logits_BSTW / temperature, _spread(p_BSK, ids_BSK, chunk[1])
    kept = p_BSTW >= 0
    cross_BST += jnp.sum(jnp.where(kept, p_BSTW * s_BSTW, 0.0), -1)
    others = chunks.more(others, jnp.where(kept, _OUT, s_BSTW))
    return (chunks.more(sums, logits_BSTW), chunks.more(cool, s_BSTW), others, cross_BST, picked_BST), None

  zero_BST = chunks.zero(x_BSD, cut)
  start = chunks.none(zero_BST), chunks.none(zero_BST), chunks.none(zero_BST), zero_BST, zero_BST
  (sums, cool, others, cross_BST, picked_BST), _ = jax.lax.scan(add, start, chunks.split(table_DV, cut))
  (lse_BS,), (cool_BS,), (others_BS,) = chunks.total(*sums), chunks.total(*cool), chunks.total(*others)
  divergence_BS = jnp.sum(p_BSK * log_p_BSK, -1) - jnp.sum(cross_BST, -1) + cool_BS
  if log_rest_BS is not None:
    divergence_BS += jnp.exp(log_rest_BS) * (log_rest_BS - others_BS)
  residuals = x_BSD, table_DV, targets_BS, log_probs_BSN, ids_BSK, (lse_BS, cool_BS, others_BS)
  return (jnp.sum(picked_BST, -1) - lse_BS, divergence_BS), residuals


def _backward(temperature, cut, residuals, d):
  x_BSD, table_DV, targets_BS, log_probs_BSN, ids_BSK, sums = residuals
  lse, cool, others, d_log, d_divergence = (x_BS[..., None, None] for x_BS in (*sums, *d))
  log_p_BSK, log_rest_BS = _teacher(log_probs_BSN, table_DV, chunks.wide(x_BSD))
  p_BSK = jnp.exp(log_p_BSK)

  def slope(chunk):
    logits_BSTW, chosen = chunks.logits(x_BSD, chunk[0]), chunks.chosen(targets_BS, chunk[1])
    s_BSTW, p_BSTW = logits_BSTW / temperature, _spread(p_BSK, ids_BSK, chunk[1])
    # What is left to the other tokens, the student shares out among them.
    shared = 0.0 if log_rest_BS is None else jnp.exp(log_rest_BS[..., None, None] + s_BSTW - others)
    apart_BSTW = jnp.exp(s_BSTW - cool) - jnp.where(p_BSTW >= 0, p_BSTW, shared)
    return (chosen - jnp.exp(logits_BSTW - lse)) * d_log + apart_BSTW / temperature * d_divergence

  return *chunks.gradients(slope, x_BSD, table_DV, cut), None, None, None


distill.defvjp(_forward, _backward)


def _spread(p_BSK, ids_BSK, ids_TW):
  """[B, S, T, W]: the probability of each column of a chunk that is kept, -1 of the others."""
  W = ids_TW.shape[1]
  at_BSTK = ids_BSK[:, :, None].astype(jnp.int32) - ids_TW[:, :1]
  at_BSTK = jnp.where(at_BSTK < 0, W, at_BSTK)  # a negative index would count from the end; past it none is set
  write = lambda p_K, at_K: jnp.full(W, -1.0, p_K.dtype).at[at_K].set(p_K, mode="drop")
  over_shards = jax.vmap(write, (None, 0))
  return jax.vmap(jax.vmap(over_shards))(p_BSK, at_BSTK)
