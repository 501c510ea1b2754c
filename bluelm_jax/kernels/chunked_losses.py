"""Losses over a large vocabulary that go from hidden states to log-probabilities a chunk of the vocabulary at a time.

They hold no logits [B, S, V], forward or backward; see `chunks`. That costs one more product with the table than
`cross_entropy.token_log_probs` does. Logits are rounded to the dtype of the hidden states, as that function gets them.

Shapes: B batch, S sequence, D width, E the teacher's width, V vocabulary, T shards, W columns of a chunk on a shard.
"""

import functools

import jax
import jax.numpy as jnp

from bluelm_jax.kernels import chunks
from bluelm_jax.kernels.chunks import Cut


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
    logits_BSTW, chosen = chunks.logits(x_BSD, chunk[0]), chunks.chosen(targets_BS, chunk[1])
    return (chunks.more(sums, logits_BSTW), picked_BST + jnp.sum(jnp.where(chosen, logits_BSTW, 0.0), -1)), None

  zero_BST = chunks.zero(x_BSD, cut)
  (sums, picked_BST), _ = jax.lax.scan(add, (chunks.none(zero_BST), zero_BST), chunks.split(table_DV, cut))
  lse_BS = chunks.total(*sums)[0]
  return jnp.sum(picked_BST, -1) - lse_BS, (x_BSD, table_DV, targets_BS, lse_BS)


def _backward(cut, residuals, d_BS):
  x_BSD, table_DV, targets_BS, lse_BS = residuals

  def slope(chunk):
    logits_BSTW, chosen = chunks.logits(x_BSD, chunk[0]), chunks.chosen(targets_BS, chunk[1])
    return (chosen - jnp.exp(logits_BSTW - lse_BS[..., None, None])) * d_BS[..., None, None]

  return *chunks.gradients(slope, x_BSD, table_DV, cut), None


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
    logits_BSTW, chosen = chunks.logits(x_BSD, chunk[0]), chunks.chosen(targets_BS, chunk[1])
    s_BSTW, t_BSTW = logits_BSTW / temperature, chunks.logits(teacher_BSE, chunk[2]) / temperature
    picked_BST += jnp.sum(jnp.where(chosen, logits_BSTW, 0.0), -1)
    before_BST, teacher = teacher[0], chunks.more(teacher, t_BSTW)
    apart_BST = jnp.sum(jnp.exp(t_BSTW - teacher[0][..., None]) * (t_BSTW - s_BSTW), -1)
    cross_BST = cross_BST * jnp.exp(before_BST - teacher[0]) + apart_BST
    return (chunks.more(sums, logits_BSTW), chunks.more(cool, s_BSTW), teacher, cross_BST, picked_BST), None

  zero_BST = chunks.zero(x_BSD, cut)
  start = chunks.none(zero_BST), chunks.none(zero_BST), chunks.none(zero_BST), zero_BST, zero_BST
  tables = *chunks.split(table_DV, cut), chunks.split(teacher_EV, cut)[0]
  (sums, cool, teacher, cross_BST, picked_BST), _ = jax.lax.scan(add, start, tables)
  (lse_BS,), (cool_BS,), (teacher_BS, mean_BS) = chunks.total(*sums), chunks.total(*cool), chunks.total(*teacher, cross_BST)
  divergence_BS = mean_BS - teacher_BS + cool_BS
  residuals = x_BSD, table_DV, targets_BS, teacher_BSE, teacher_EV, (lse_BS, cool_BS, teacher_BS)
  return (jnp.sum(picked_BST, -1) - lse_BS, divergence_BS), residuals


def _distill_backward(temperature, cut, residuals, d):
  x_BSD, table_DV, targets_BS, teacher_BSE, teacher_EV, sums = residuals
  lse, cool, teacher, d_log, d_divergence = (x_BS[..., None, None] for x_BS in (*sums, *d))

  def slope(chunk):
    logits_BSTW, chosen = chunks.logits(x_BSD, chunk[0]), chunks.chosen(targets_BS, chunk[1])
    t_BSTW = chunks.logits(teacher_BSE, chunk[2]) / temperature
    apart_BSTW = jnp.exp(logits_BSTW / temperature - cool) - jnp.exp(t_BSTW - teacher)
    return (chosen - jnp.exp(logits_BSTW - lse)) * d_log + apart_BSTW / temperature * d_divergence

  return *chunks.gradients(slope, x_BSD, table_DV, cut, chunks.split(teacher_EV, cut)[0]), None, None, None


distill.defvjp(_distill_forward, _distill_backward)
