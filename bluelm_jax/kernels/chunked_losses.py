"""Losses over a large vocabulary that go from hidden states to log-probabilities a chunk of the vocabulary at a time.

No logits [B, S, V] are alive, forward or backward: a chunk's are made, used and dropped, and made again for the
gradient. That costs one more product with the table than `cross_entropy.token_log_probs` does. Logits are rounded to
the dtype of the hidden states, as that function gets them.

Where a mesh cuts the vocabulary, each shard keeps sums of its own, and they meet once, after the last chunk.

Shapes: B batch, S sequence, D width, E the teacher's width, V vocabulary, C chunks, T shards, W columns of a chunk
on a shard.
"""

import functools
from typing import NamedTuple

import einops
import jax
import jax.numpy as jnp


class Cut(NamedTuple):
  """How a vocabulary is cut.

  Attributes:
    chunks: made one after another.
    shards: into which a mesh cuts the vocabulary; a chunk takes as many columns of each, so that none travels.
  """

  chunks: int
  shards: int = 1


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def token_log_probs(x_BSD, table_DV, targets_BS, cut: Cut):
  """[B, S] log p(target) of the logits x @ table, in float32, or float64 for float64 logits.

  Raises:
    ValueError: a vocabulary that does not divide.
  """
  return _forward(x_BSD, table_DV, targets_BS, cut)[0]


def _forward(x_BSD, table_DV, targets_BS, cut):
  def add(carry, chunk):
    sums, picked_BST = carry
    logits_BSTW, chosen = _logits(x_BSD, chunk[0]), _chosen(targets_BS, chunk[1])
    return (_more(sums, logits_BSTW), picked_BST + jnp.sum(jnp.where(chosen, logits_BSTW, 0.0), -1)), None

  zero_BST = _zero(x_BSD, cut)
  (sums, picked_BST), _ = jax.lax.scan(add, (_none(zero_BST), zero_BST), _split(table_DV, cut))
  lse_BS = _total(*sums)[0]
  return jnp.sum(picked_BST, -1) - lse_BS, (x_BSD, table_DV, targets_BS, lse_BS)


def _backward(cut, residuals, d_BS):
  x_BSD, table_DV, targets_BS, lse_BS = residuals

  def slope(chunk):
    logits_BSTW, chosen = _logits(x_BSD, chunk[0]), _chosen(targets_BS, chunk[1])
    return (chosen - jnp.exp(logits_BSTW - lse_BS[..., None, None])) * d_BS[..., None, None]

  return *_gradients(slope, x_BSD, table_DV, cut), None


token_log_probs.defvjp(_forward, _backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def distill(x_BSD, table_DV, targets_BS, teacher_BSE, teacher_EV, temperature: float, cut: Cut):
  """Of a student x @ table beside its teacher: ([B, S] log p(target), [B, S] KL(teacher || student) in nats).

  The divergence is that of the distributions softmax(logits / temperature) (Hinton et al., arXiv 1503.02531), without
  its factor temperature^2. The teacher gets no gradient.

  Raises:
    ValueError: a vocabulary that does not divide.
  """
  return _distill_forward(x_BSD, table_DV, targets_BS, teacher_BSE, teacher_EV, temperature, cut)[0]


def _distill_forward(x_BSD, table_DV, targets_BS, teacher_BSE, teacher_EV, temperature, cut):
  def add(carry, chunk):
    sums, cool, teacher, cross_BST, picked_BST = carry
    logits_BSTW, chosen = _logits(x_BSD, chunk[0]), _chosen(targets_BS, chunk[1])
    s_BSTW, t_BSTW = logits_BSTW / temperature, _logits(teacher_BSE, chunk[2]) / temperature
    picked_BST += jnp.sum(jnp.where(chosen, logits_BSTW, 0.0), -1)
    before_BST, teacher = teacher[0], _more(teacher, t_BSTW)
    apart_BST = jnp.sum(jnp.exp(t_BSTW - teacher[0][..., None]) * (t_BSTW - s_BSTW), -1)
    cross_BST = cross_BST * jnp.exp(before_BST - teacher[0]) + apart_BST
    return (_more(sums, logits_BSTW), _more(cool, s_BSTW), teacher, cross_BST, picked_BST), None

  zero_BST = _zero(x_BSD, cut)
  start = _none(zero_BST), _none(zero_BST), _none(zero_BST), zero_BST, zero_BST
  tables = *_split(table_DV, cut), _split(teacher_EV, cut)[0]
  (sums, cool, teacher, cross_BST, picked_BST), _ = jax.lax.scan(add, start, tables)
  (lse_BS,), (cool_BS,), (teacher_BS, mean_BS) = _total(*sums), _total(*cool), _total(*teacher, cross_BST)
  divergence_BS = mean_BS - teacher_BS + cool_BS
  residuals = x_BSD, table_DV, targets_BS, teacher_BSE, teacher_EV, (lse_BS, cool_BS, teacher_BS)
  return (jnp.sum(picked_BST, -1) - lse_BS, divergence_BS), residuals


def _distill_backward(temperature, cut, residuals, d):
  x_BSD, table_DV, targets_BS, teacher_BSE, teacher_EV, sums = residuals
  lse, cool, teacher, d_log, d_divergence = (x_BS[..., None, None] for x_BS in (*sums, *d))

  def slope(chunk):
    logits_BSTW, chosen = _logits(x_BSD, chunk[0]), _chosen(targets_BS, chunk[1])
    t_BSTW = _logits(teacher_BSE, chunk[2]) / temperature
    apart_BSTW = jnp.exp(logits_BSTW / temperature - cool) - jnp.exp(t_BSTW - teacher)
    return (chosen - jnp.exp(logits_BSTW - lse)) * d_log + apart_BSTW / temperature * d_divergence

  return *_gradients(slope, x_BSD, table_DV, cut, _split(teacher_EV, cut)[0]), None, None, None


distill.defvjp(_distill_forward, _distill_backward)


def _split(table_DV, cut):
  """(the table's columns [C, D, T, W], their ids [C, T, W])."""
  V = table_DV.shape[1]
  if cut.chunks < 1 or V % (cut.chunks * cut.shards):
    raise ValueError(f"a vocabulary of {V} on {cut.shards} shards does not divide into {cut.chunks} chunks; use a divisor of {V // cut.shards}")
  split = functools.partial(einops.rearrange, t=cut.shards, c=cut.chunks)
  return split(table_DV, "d (t c w) -> c d t w"), split(jnp.arange(V, dtype=jnp.int32), "(t c w) -> c t w")


def _wide(x):
  return jnp.promote_types(x.dtype, jnp.float32)


def _zero(x_BSD, cut):
  return jnp.zeros((*x_BSD.shape[:2], cut.shards), _wide(x_BSD))


def _logits(x_BSD, table_DTW):
  return jnp.einsum("bsd,dtw->bstw", x_BSD, table_DTW).astype(_wide(x_BSD))


def _chosen(targets_BS, ids_TW):
  return targets_BS[..., None, None] == ids_TW


def _none(zero_BST):
  """(maximum, sum of exponentials less the maximum) of nothing yet."""
  return zero_BST - jnp.inf, zero_BST


def _more(sums, logits_BSTW):
  """Such sums with a chunk's logits added."""
  most_BST, sum_BST = sums
  now_BST = jnp.maximum(most_BST, jnp.max(logits_BSTW, -1))
  return now_BST, sum_BST * jnp.exp(most_BST - now_BST) + jnp.sum(jnp.exp(logits_BSTW - now_BST[..., None]), -1)


def _total(most_BST, sum_BST, *others_BST):
  """Over all shards: log of the sum of exponentials [B, S], and other sums of the same scale divided by that sum."""
  most_BS1 = jnp.max(most_BST, -1, keepdims=True)
  scale_BST = jnp.exp(most_BST - most_BS1)
  sum_BS, *others_BS = (jnp.sum(x_BST * scale_BST, -1) for x_BST in (sum_BST, *others_BST))
  return most_BS1[..., 0] + jnp.log(sum_BS), *(x_BS / sum_BS for x_BS in others_BS)


def _gradients(slope, x_BSD, table_DV, cut, *others):
  """Of x and the table, from `slope`: a chunk -> the gradient of its logits."""

  def add(dx_TBSD, chunk):
    d_BSTW = slope(chunk).astype(x_BSD.dtype)
    dx_TBSD += jnp.einsum("bstw,dtw->tbsd", d_BSTW, chunk[0], preferred_element_type=dx_TBSD.dtype)
    return dx_TBSD, jnp.einsum("bsd,bstw->dtw", x_BSD, d_BSTW)

  zero_TBSD = jnp.zeros((cut.shards, *x_BSD.shape), _wide(x_BSD))
  dx_TBSD, d_CDTW = jax.lax.scan(add, zero_TBSD, (*_split(table_DV, cut), *others))
  return jnp.sum(dx_TBSD, 0).astype(x_BSD.dtype), einops.rearrange(d_CDTW, "c d t w -> d (t c w)").astype(table_DV.dtype)
