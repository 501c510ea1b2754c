"""Paged attention in plain XLA: the pages of every row are gathered, then attended to at once.

Shapes: R rows, Q queries of a row, M pages of a table, X pages, P slots of a page, S = M P, K key-value heads,
G query heads of each, D head size.
"""

import einops
import jax
import jax.numpy as jnp

_FAR = -1e30  # finite, so that no infinities meet; its exponential is 0


def attention(q_RQHD, k_XPKD, v_XPKD, tables_RM, positions_RQ, scale):
  R, Q, H, D = q_RQHD.shape
  K = k_XPKD.shape[2]
  q_RKGD = einops.rearrange(q_RQHD, "r q (k g) d -> r k (g q) d", k=K)
  k_RKSD, v_RKSD = (einops.rearrange(x[tables_RM], "r m p k d -> r k (m p) d") for x in (k_XPKD, v_XPKD))
  wide = jnp.promote_types(q_RQHD.dtype, jnp.float32)
  scores = jnp.einsum("rkqd,rksd->rkqs", q_RKGD, k_RKSD, preferred_element_type=wide) * scale
  seen_RQS = jnp.arange(k_RKSD.shape[2]) <= positions_RQ[..., None]
  seen = jnp.tile(seen_RQS, (1, H // K, 1))[:, None]
  weights = jnp.where(seen, jnp.exp(scores - jnp.max(scores, axis=-1, keepdims=True, where=seen, initial=_FAR)), 0.0)
  weights /= jnp.maximum(weights.sum(-1, keepdims=True), jnp.finfo(wide).tiny)
  out = jnp.einsum("rkqs,rksd->rkqd", weights.astype(v_RKSD.dtype), v_RKSD, preferred_element_type=wide)
  return einops.rearrange(out, "r k (g q) d -> r q (k g) d", q=Q).astype(q_RQHD.dtype)
