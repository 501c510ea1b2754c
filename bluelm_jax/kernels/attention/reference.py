"""Dense attention: the meaning that every other backend must equal.

Shapes: B batch, Q queries, S keys, K key-value heads, G query heads per KV head, H = K G, D head size.
"""

import jax
import jax.numpy as jnp

_FAR = -1e30  # finite, so that no infinities meet; its exponential is 0


def attention(q_BQHD, k_BSKD, v_BSKD, mask_BQS=None, scale=None):
  """Softmax attention with grouped KV heads; scores in float32 (float64 for float64 inputs).

  A query that sees nothing gets zeros.
  """
  B, Q, H, D = q_BQHD.shape
  K = k_BSKD.shape[2]
  scale = D**-0.5 if scale is None else scale
  accumulate = jnp.promote_types(q_BQHD.dtype, jnp.float32)
  # Heads first: XLA's CPU products are twice as fast so.
  q_BKGQD = (q_BQHD * scale).reshape(B, Q, K, H // K, D).transpose(0, 2, 3, 1, 4)
  k_BKSD, v_BKSD = k_BSKD.transpose(0, 2, 1, 3), v_BSKD.transpose(0, 2, 1, 3)
  scores = jnp.einsum("bkgqd,bksd->bkgqs", q_BKGQD, k_BKSD, preferred_element_type=accumulate)
  if mask_BQS is not None:
    scores = jnp.where(mask_BQS[:, None, None], scores, _FAR)
  weights = jnp.exp(scores - jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True)))
  total = jnp.sum(weights, axis=-1, keepdims=True)
  out = jnp.einsum("bkgqs,bksd->bkgqd", weights.astype(v_BSKD.dtype), v_BKSD, preferred_element_type=accumulate) / total
  if mask_BQS is not None:
    out = jnp.where(jnp.any(mask_BQS, axis=-1)[:, None, None, :, None], out, 0.0)
  return out.astype(v_BSKD.dtype).transpose(0, 3, 1, 2, 4).reshape(B, Q, H, v_BSKD.shape[-1])
