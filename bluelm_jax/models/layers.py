"""Parameters and layers that several models share.

Shapes: B batch, S sequence, D model width.
"""

from typing import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from bluelm_jax.models import quantized
from bluelm_jax.sharding import rules


def param(module: nn.Module, name: str, shape: Sequence[int], axes: Sequence[str], fan_in: int | None, scale: float = 1.0):
  """A parameter with logical axis names, cast to the module's compute dtype.

  Args:
    fan_in: inputs of a product: normal with std scale / sqrt(fan_in). None: all `scale` (norms, biases).
  """
  if fan_in is None:
    init = nn.initializers.constant(scale)
  else:
    init = nn.initializers.normal(scale * fan_in**-0.5)
  config = module.config
  value = module.param(name, nn.with_logical_partitioning(init, tuple(axes)), tuple(shape), jnp.dtype(config.param_dtype))
  return rules.gathered(value.astype(config.dtype), axes)


@jax.custom_vjp
def product(x, weight):
  """x [..., D] @ weight [D, F].

  In the weight's gradient the narrower of x and the output's gradient stands on the left, the side that XLA's CPU compiler
  transposes: element by element, with all that computes it.
  """
  return x @ weight


def _product_gradients(residuals, d_out):
  x, weight = residuals
  rows = tuple(range(x.ndim - 1)), tuple(range(x.ndim - 1))
  if weight.shape[0] <= weight.shape[1]:
    d_weight = jax.lax.dot_general(x, d_out, (rows, ((), ())))
  else:
    d_weight = jax.lax.dot_general(d_out, x, (rows, ((), ()))).T
  return d_out @ weight.T, d_weight


product.defvjp(lambda x, weight: (x @ weight, (x, weight)), _product_gradients)


def _wide(x):
  """float32, or float64 for float64 inputs."""
  return jnp.promote_types(x.dtype, jnp.float32)


class RMSNorm(nn.Module):
  """x / rms(x) * scale over the last axis, in at least float32 (arXiv 1910.07467)."""

  config: object
  axis: str = "norm"

  @nn.compact
  def __call__(self, x):
    scale = self.param("scale", nn.with_logical_partitioning(nn.initializers.ones, (self.axis,)), (x.shape[-1],), jnp.dtype(self.config.param_dtype))
    y = x.astype(_wide(x))
    y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + self.config.norm_eps)
    return (y * scale.astype(y.dtype)).astype(x.dtype)


class LayerNorm(nn.Module):
  """LayerNorm with scale and bias over the last axis, in at least float32."""

  config: object

  @nn.compact
  def __call__(self, x):
    dtype = jnp.dtype(self.config.param_dtype)
    scale = self.param("scale", nn.with_logical_partitioning(nn.initializers.ones, ("norm",)), (x.shape[-1],), dtype)
    bias = self.param("bias", nn.with_logical_partitioning(nn.initializers.zeros, ("norm",)), (x.shape[-1],), dtype)
    y = x.astype(_wide(x))
    y = y - jnp.mean(y, axis=-1, keepdims=True)
    y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + self.config.norm_eps)
    return (y * scale.astype(y.dtype) + bias.astype(y.dtype)).astype(x.dtype)


class Tap(nn.Module):
  """Shows activations by name to an interceptor (`nn.intercept_methods`); without one, nothing is computed."""

  def __call__(self, *values):
    del values


def stacked(block: type[nn.Module], config, length: int, policy, in_axes, **scan_kwargs):
  """`length` copies of a block with parameters stacked on axis 0, in a loop or unrolled.

  Both forms have the same parameter tree, so a checkpoint serves either.

  Args:
    config: with scan_layers, and quantized where it may be.
  """
  if getattr(config, "quantized", False):  # each layer makes its own weights whole
    block = nn.map_variables(block, "params", quantized.whole)
  if policy is not None:
    block = nn.remat(block, policy=policy, prevent_cse=not config.scan_layers)
  return nn.scan(
      block,
      variable_axes={"params": 0, "intermediates": 0},
      split_rngs={"params": True},
      in_axes=in_axes,
      length=length,
      unroll=1 if config.scan_layers else length,
      check_constancy_invariants=False,  # one tracing less; nothing is broadcast out of a layer
      metadata_params={nn.PARTITION_NAME: "layers"},
      **scan_kwargs,
  )
