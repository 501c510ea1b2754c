"""Paged attention in plain XLA: each row walks its own pages a block at a time, so that cost follows true lengths.

Shapes: R rows, Q queries of a row, M pages of a table, X pages, P slots of a page, n pages of a block, J blocks of a table,
T = n P tokens of a block, K key-value heads, G query heads of each, N = G Q, D head size.
"""

import einops
import jax
import jax.numpy as jnp

from bluelm_jax.kernels.attention import api

_FAR = -1e30  # finite, so that no infinities meet; its exponential is 0
_BLOCK = 256  # tokens; what is gathered of them stays in a core's cache


def attention(q_RQHD, k_XKPD, v_XKPD, tables_RM, positions_RQ, scales, scale):
  Q, H, K, P = *q_RQHD.shape[1:3], *k_XKPD.shape[1:3]
  n = min(max(1, _BLOCK // P), tables_RM.shape[1])
  wide = jnp.promote_types(q_RQHD.dtype, jnp.float32)
  tables_RJn = jnp.pad(tables_RM, ((0, 0), (0, -tables_RM.shape[1] % n))).reshape(len(tables_RM), -1, n)

  def row(q_QHD, tables_Jn, positions_Q):
    q_KND = einops.rearrange(q_QHD, "q (k g) d -> k (g q) d", k=K)
    positions_N1 = jnp.tile(positions_Q, H // K)[:, None]

    def block(j, carry):
      top, total, out = carry
      k_KTD, v_KTD = (_gather(x, tables_Jn[j]).astype(q_KND.dtype) for x in (k_XKPD, v_XKPD))
      s = jnp.einsum("knd,ktd->knt", q_KND, k_KTD, preferred_element_type=wide) * scale
      if scales:
        k_scale_K1T, v_scale_K1T = (_gather(x, tables_Jn[j])[:, None] for x in scales)
        s *= k_scale_K1T
      s = jnp.where(j * n * P + jnp.arange(n * P) <= positions_N1, s, _FAR)
      new_top = jnp.maximum(top, s.max(-1))
      p = jnp.exp(s - new_top[..., None])
      shrink = jnp.exp(top - new_top)
      weights = (p * v_scale_K1T if scales else p).astype(v_KTD.dtype)
      pv = jnp.einsum("knt,ktd->knd", weights, v_KTD, preferred_element_type=wide)
      return new_top, total * shrink + p.sum(-1), out * shrink[..., None] + pv

    start = jnp.full(q_KND.shape[:2], _FAR, wide), jnp.zeros(q_KND.shape[:2], wide), jnp.zeros(q_KND.shape, wide)
    top, total, out = jax.lax.fori_loop(0, positions_Q.max() // (n * P) + 1, block, start)
    some = top > _FAR  # a query that is not there comes out as zeros
    out = jnp.where(some[..., None], out / jnp.where(some, total, 1.0)[..., None], 0.0)
    return einops.rearrange(out, "k (g q) d -> q (k g) d", q=Q).astype(q_RQHD.dtype)

  args = q_RQHD, tables_RJn, positions_RQ
  if api.target_platform() == "cpu":
    return jax.lax.map(lambda x: row(*x), args)  # one after the other: a short row does not wait for a long one
  return jax.vmap(row)(*args)


def _gather(x_XKP, pages_n):
  """[K, T, ...]: what lies in these pages, a head's part of a page copied as one piece."""
  X, K, P, *rest = x_XKP.shape
  at_Kn = pages_n * K + jnp.arange(K)[:, None]
  return x_XKP.reshape(X * K, P, *rest)[at_Kn].reshape(K, -1, *rest)
