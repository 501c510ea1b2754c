"""Token cross-entropy.

Shapes: B batch, S sequence, V vocabulary.
"""

import jax
import jax.numpy as jnp


def token_log_probs(logits_BSV, targets_BS):
  """[B, S] log p(target), in float32, or float64 for float64 logits."""
  logits_BSV = logits_BSV.astype(jnp.promote_types(logits_BSV.dtype, jnp.float32))
  picked_BS = jnp.take_along_axis(logits_BSV, targets_BS[..., None], axis=-1)[..., 0]
  return picked_BS - jax.nn.logsumexp(logits_BSV, axis=-1)
