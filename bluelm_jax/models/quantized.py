"""Weights in eight or four bits, made whole again where a layer uses them.

Shapes: I inputs of a product, O its outputs, G groups of inputs with a scale of their own.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp

# How many leading axes of a decoder's weight are its inputs; embeddings are rows, each an output of its own.
_INPUTS = {"q": 1, "k": 1, "v": 1, "o": 2, "gate": 1, "up": 1, "down": 1, "lm_head": 1, "embedding": 0}


@functools.partial(jax.tree_util.register_dataclass, data_fields=["numbers", "scales"], meta_fields=["bits", "inputs", "shape", "dtype"])
@dataclasses.dataclass(frozen=True)
class Quantized:
  """A weight as int8 numbers and scales; one leaf of a tree of parameters.

  Attributes:
    numbers: int8 [..., I, O], or two of four bits in each int8 [..., I / 2, O]: the first half of the inputs in the low bits.
    scales: float32 [..., G, O]; G = 1 is one scale an output.
    bits: 8 or 4.
    inputs: how many axes of `shape` are inputs; 0: the last one is, and rows are outputs.
    shape, dtype: of the whole weight, one layer's.
  """

  numbers: jax.Array
  scales: jax.Array
  bits: int
  inputs: int
  shape: tuple[int, ...]
  dtype: str


def quantize(params, bits: int, group: int | None = None):
  """The decoder's weights of a tree of parameters in 8 or 4 bits, rounded to the nearest; all else as it is.

  Args:
    params: of a decoder or a BlueLM; whole, with the layers stacked.
    group: inputs that share a scale; None: one scale an output.

  Raises:
    ValueError: bits other than 8 and 4, or a group that does not divide a weight's inputs.
  """
  if bits not in (8, 4):
    raise ValueError(f"weights are quantised to 8 or 4 bits, not {bits}")

  def one(path, x):
    names = [p.key for p in path]
    if names[-1] not in _INPUTS or not {"vision", "adapter"}.isdisjoint(names):
      return x
    make = functools.partial(_quantize, bits=bits, group=group, inputs=_INPUTS[names[-1]], name="/".join(names))
    return jax.vmap(make)(x) if "layers" in names else make(x)

  return jax.tree_util.tree_map_with_path(one, params)


def _quantize(x, bits, group, inputs, name):
  rows = x.T if inputs == 0 else x.reshape(math.prod(x.shape[:inputs]), -1)
  I, O = rows.shape
  group = group or I
  if I % group or (bits == 4 and I % 2):
    raise ValueError(f"{name} has {I} inputs, which groups of {group} do not divide; use another group")
  grouped = rows.astype(jnp.float32).reshape(I // group, group, O)
  most = 2 ** (bits - 1) - 1
  scales = jnp.max(jnp.abs(grouped), axis=1) / most
  numbers = jnp.round(grouped / jnp.where(scales > 0, scales, 1.0)[:, None]).astype(jnp.int8).reshape(I, O)
  if bits == 4:
    low, high = jnp.split(numbers, 2)
    numbers = (low & 15) | (high << 4)
  return Quantized(numbers, scales, bits, inputs, x.shape, x.dtype.name)


def whole(params):
  """The tree with every Quantized made an array again."""
  return jax.tree.map(lambda x: _whole(x) if isinstance(x, Quantized) else x, params, is_leaf=lambda x: isinstance(x, Quantized))


def _whole(x: Quantized):
  numbers = x.numbers
  if x.bits == 4:
    numbers = jnp.concatenate([(numbers << 4) >> 4, numbers >> 4])  # arithmetic shifts keep the sign
  I, O = numbers.shape
  G = x.scales.shape[0]
  weight = (numbers.reshape(G, I // G, O).astype(x.dtype) * x.scales[:, None].astype(x.dtype)).reshape(I, O)
  return weight.T if x.inputs == 0 else weight.reshape(x.shape)
