"""What losses share that go from hidden states to log-probabilities a chunk of the vocabulary at a time.

No logits [B, S, V] are alive: a chunk's are made, used and dropped, and made again for the gradient. Where a mesh cuts
the vocabulary, each shard keeps sums of its own, and they meet once, after the last chunk.

Shapes: B batch, S sequence, D width, V vocabulary, C chunks, T shards, W columns of a chunk on a shard.
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


def split(table_DV, cut: Cut):
  """(the table's columns [C, D, T, W], their ids [C, T, W]).

  Raises:
    ValueError: a vocabulary that does not divide.
  """
  V = table_DV.shape[1]
  if cut.chunks < 1 or V % (cut.chunks * cut.shards):
    raise ValueError(f"a vocabulary of {V} on {cut.shards} shards does not divide into {cut.chunks} chunks; use a divisor of {V // cut.shards}")
  rearranged = functools.partial(einops.rearrange, t=cut.shards, c=cut.chunks)
  return rearranged(table_DV, "d (t c w) -> c d t w"), rearranged(jnp.arange(V, dtype=jnp.int32), "(t c w) -> c t w")


def wide(x):
  return jnp.promote_types(x.dtype, jnp.float32)


def zero(x_BSD, cut: Cut):
  return jnp.zeros((*x_BSD.shape[:2], cut.shards), wide(x_BSD))


def logits(x_BSD, table_DTW):
  """[B, S, T, W] of a chunk, rounded to the dtype of the hidden states and then widened."""
  return jnp.einsum("bsd,dtw->bstw", x_BSD, table_DTW).astype(wide(x_BSD))


def chosen(targets_BS, ids_TW):
  return targets_BS[..., None, None] == ids_TW


def none(zero_BST):
  """(maximum, sum of exponentials less the maximum) of nothing yet."""
  return zero_BST - jnp.inf, zero_BST


def more(sums, logits_BSTW):
  """Such sums with a chunk's logits added."""
  most_BST, sum_BST = sums
  now_BST = jnp.maximum(most_BST, jnp.max(logits_BSTW, -1))
  return now_BST, sum_BST * jnp.exp(most_BST - now_BST) + jnp.sum(jnp.exp(logits_BSTW - now_BST[..., None]), -1)


def total(most_BST, sum_BST, *others_BST):
  """Over all shards: log of the sum of exponentials [B, S], and other sums of the same scale divided by that sum."""
  most_BS1 = jnp.max(most_BST, -1, keepdims=True)
  scale_BST = jnp.exp(most_BST - most_BS1)
  sum_BS, *others_BS = (jnp.sum(x_BST * scale_BST, -1) for x_BST in (sum_BST, *others_BST))
  return most_BS1[..., 0] + jnp.log(sum_BS), *(x_BS / sum_BS for x_BS in others_BS)


def gradients(slope, x_BSD, table_DV, cut: Cut, *others):
  """Of x and the table, from `slope`: a chunk -> the gradient of its logits."""

  def add(dx_TBSD, chunk):
    d_BSTW = slope(chunk).astype(x_BSD.dtype)
    dx_TBSD += jnp.einsum("bstw,dtw->tbsd", d_BSTW, chunk[0], preferred_element_type=dx_TBSD.dtype)
    return dx_TBSD, jnp.einsum("bsd,bstw->dtw", x_BSD, d_BSTW)

  zero_TBSD = jnp.zeros((cut.shards, *x_BSD.shape), wide(x_BSD))
  dx_TBSD, d_CDTW = jax.lax.scan(add, zero_TBSD, (*split(table_DV, cut), *others))
  return jnp.sum(dx_TBSD, 0).astype(x_BSD.dtype), einops.rearrange(d_CDTW, "c d t w -> d (t c w)").astype(table_DV.dtype)
