"""Token cross-entropy.

Shapes: B batch, S sequence, V vocabulary.
"""

import jax
import jax.numpy as jnp


def token_log_probs(logits_BSV, targets_BS):
  """float32 [B, S] log p(target)."""
  logits_BSV = logits_BSV.astype(jnp.float32)
  picked_BS = jnp.take_along_axis(logits_BSV, targets_BS[..., None], axis=-1)[..., 0]
  return picked_BS - jax.nn.logsumexp(logits_BSV, axis=-1)
