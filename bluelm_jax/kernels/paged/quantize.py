"""Keys and values in eight bits, a scale for each token of each head.

Shapes: ... any, D head size.
"""

import jax.numpy as jnp


def quantize(x):
  """Returns (int8 [..., D], float32 [...]): numbers of -127 to 127 and what they are to be multiplied by; zeros have scale 0.

  The error of a number is at most half its scale, that is 1/254 of the largest of its head.
  """
  wide = x.astype(jnp.float32)
  scale = jnp.max(jnp.abs(wide), axis=-1) / 127
  numbers = jnp.round(wide / jnp.where(scale > 0, scale, 1.0)[..., None])
  return numbers.astype(jnp.int8), scale
