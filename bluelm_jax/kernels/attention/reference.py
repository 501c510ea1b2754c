"""Dense attention: the meaning that every other backend must equal.

Shapes: B batch, Q queries, S keys, K key-value heads, G query heads per KV head, H = K G, D head size,
V head size of values.
"""

import jax
import jax.numpy as jnp

from bluelm_jax.kernels.attention import masks

_FAR = -1e30  # finite, so that no infinities meet; its exponential is 0


def attention(q_BQHD, k_BSKD, v_BSKV, mask: masks.Mask, scale: float):
  """Returns (out [B, Q, H, V] in v's dtype, log-sum-exp [B, Q, H]); scores in float32 (float64 for float64 inputs).

  A query that sees nothing gets zeros, and a log-sum-exp of -inf.
  """
  B, Q, H, D = q_BQHD.shape
  K = k_BSKD.shape[2]
  accumulate = jnp.promote_types(q_BQHD.dtype, jnp.float32)
  # Heads first: XLA's CPU products are twice as fast so.
  q_BKGQD = q_BQHD.reshape(B, Q, K, H // K, D).transpose(0, 2, 3, 1, 4)
  k_BKSD, v_BKSV = k_BSKD.transpose(0, 2, 1, 3), v_BSKV.transpose(0, 2, 1, 3)
  scores = jnp.einsum("bkgqd,bksd->bkgqs", q_BKGQD, k_BKSD, preferred_element_type=accumulate) * scale
  visible_BQS = masks.visible(mask)
  if visible_BQS is not None:
    scores = jnp.where(visible_BQS[:, None, None], scores, _FAR)
  top = jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True))
  weights = jnp.exp(scores - top)
  total = jnp.sum(weights, axis=-1, keepdims=True)
  out = jnp.einsum("bkgqs,bksv->bkgqv", weights.astype(v_BSKV.dtype), v_BKSV, preferred_element_type=accumulate) / total
  lse = (top + jnp.log(total))[..., 0]
  if visible_BQS is not None:
    any_BQ = jnp.any(visible_BQS, axis=-1)[:, None, None]
    out, lse = jnp.where(any_BQ[..., None], out, 0.0), jnp.where(any_BQ, lse, -jnp.inf)
  out = out.astype(v_BSKV.dtype).transpose(0, 3, 1, 2, 4).reshape(B, Q, H, v_BSKV.shape[-1])
  return out, lse.transpose(0, 3, 1, 2).reshape(B, Q, H)
