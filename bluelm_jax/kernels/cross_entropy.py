"""Token cross-entropy.

Shapes: B batch, S sequence, V vocabulary.
"""

import jax
import jax.numpy as jnp


@jax.custom_vjp
def token_log_probs(logits_BSV, targets_BS):
  """[B, S] log p(target), in float32, or float64 for float64 logits.

  The backward pass keeps the logits as they came and makes their gradient, one-hot minus softmax, in one sweep: jax's
  own scatters into zeros of float32, the largest buffer of a step.
  """
  return _forward(logits_BSV, targets_BS)[0]


def _forward(logits_BSV, targets_BS):
  wide_BSV = logits_BSV.astype(jnp.promote_types(logits_BSV.dtype, jnp.float32))
  lse_BS = jax.nn.logsumexp(wide_BSV, axis=-1)
  # Picked before it is widened: a gather from the wide logits would have compilers hold them.
  picked_BS = jnp.take_along_axis(logits_BSV, targets_BS[..., None], axis=-1)[..., 0].astype(lse_BS.dtype)
  return picked_BS - lse_BS, (logits_BSV, targets_BS, lse_BS)


def _backward(residuals, d_BS):
  logits_BSV, targets_BS, lse_BS = residuals
  chosen = jax.lax.broadcasted_iota(targets_BS.dtype, logits_BSV.shape, logits_BSV.ndim - 1) == targets_BS[..., None]
  d_BSV = (chosen - jnp.exp(logits_BSV.astype(lse_BS.dtype) - lse_BS[..., None])) * d_BS[..., None]
  return d_BSV.astype(logits_BSV.dtype), None


token_log_probs.defvjp(_forward, _backward)
