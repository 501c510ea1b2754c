"""Dense attention: the meaning that every other backend must equal.

Shapes: B batch, Q queries, S keys, K key-value heads, G query heads per KV head, D head size.
"""

import jax.numpy as jnp


def attention(q_BQHD, k_BSKD, v_BSKD, mask_BQS=None, scale=None):
  """Softmax attention with grouped KV heads; scores in float32 (float64 for float64 inputs).

  A query that sees nothing gets zeros.
  """
  B, Q, H, D = q_BQHD.shape
  K = k_BSKD.shape[2]
  scale = D**-0.5 if scale is None else scale
  accumulate = jnp.promote_types(q_BQHD.dtype, jnp.float32)
  q_BQKGD = (q_BQHD * scale).reshape(B, Q, K, H // K, D)
  scores = jnp.einsum("bqkgd,bskd->bkgqs", q_BQKGD, k_BSKD, preferred_element_type=accumulate)
  if mask_BQS is not None:
    scores = jnp.where(mask_BQS[:, None, None], scores, -jnp.inf)
  top = jnp.max(scores, axis=-1, keepdims=True)
  weights = jnp.exp(scores - jnp.where(jnp.isfinite(top), top, 0.0))
  total = jnp.sum(weights, axis=-1, keepdims=True)
  weights = (weights / jnp.where(total == 0.0, 1.0, total)).astype(v_BSKD.dtype)
  return jnp.einsum("bkgqs,bskd->bqkgd", weights, v_BSKD).reshape(B, Q, H, v_BSKD.shape[-1])
