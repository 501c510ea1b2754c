"""Paged attention in plain XLA: the pages of every row are gathered, then attended to at once.

Shapes: R rows, Q queries of a row, M pages of a table, X pages, P slots of a page, S = M P, K key-value heads,
G query heads of each, D head size.
"""

import einops
import jax.numpy as jnp

_FAR = -1e30  # finite, so that no infinities meet; its exponential is 0


def attention(q_RQHD, k_XKPD, v_XKPD, tables_RM, positions_RQ, scales, scale):
  Q, H, K = q_RQHD.shape[1], q_RQHD.shape[2], k_XKPD.shape[1]
  wide = jnp.promote_types(q_RQHD.dtype, jnp.float32)
  q_RKND = einops.rearrange(q_RQHD, "r q (k g) d -> r k (g q) d", k=K)
  k_RKSD, v_RKSD = (_rows(x, tables_RM).astype(q_RQHD.dtype) for x in (k_XKPD, v_XKPD))
  scores = jnp.einsum("rknd,rksd->rkns", q_RKND, k_RKSD, preferred_element_type=wide) * scale
  if scales:
    k_scale_RKS, v_scale_RKS = (_rows(x, tables_RM) for x in scales)
    scores *= k_scale_RKS[:, :, None]
  seen_RQS = jnp.arange(scores.shape[-1]) <= positions_RQ[..., None]
  seen = jnp.tile(seen_RQS, (1, H // K, 1))[:, None]
  weights = jnp.where(seen, jnp.exp(scores - jnp.max(scores, axis=-1, keepdims=True, where=seen, initial=_FAR)), 0.0)
  weights /= jnp.maximum(weights.sum(-1, keepdims=True), jnp.finfo(wide).tiny)
  if scales:
    weights *= v_scale_RKS[:, :, None]
  out = jnp.einsum("rkns,rksd->rknd", weights.astype(v_RKSD.dtype), v_RKSD, preferred_element_type=wide)
  return einops.rearrange(out, "r k (g q) d -> r q (k g) d", q=Q).astype(q_RQHD.dtype)


def _rows(x_XKP, tables_RM):
  """[R, K, S, ...]: what lies in the pages of every row, a head's part of a page copied as one piece."""
  X, K, P, *rest = x_XKP.shape
  at_RKM = tables_RM[:, None] * K + jnp.arange(K)[:, None]
  return x_XKP.reshape(X * K, P, *rest)[at_RKM].reshape(at_RKM.shape[0], K, -1, *rest)
