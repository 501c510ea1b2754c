"""Muon: momentum of a weight matrix, made nearly orthogonal by a Newton-Schulz iteration (Jordan et al. 2024).

Two kinds. `jordan` is optax's: momentum with bias correction, updates larger for matrices that widen. `moonlight` is
Moonlight's (arXiv 2502.16982): plain Nesterov momentum, updates as large as AdamW's, so that one learning rate and
one weight decay serve all parameters.

Shapes: I inputs, O outputs of a weight; leading axes are a batch of matrices.
"""

import math

import jax
import jax.numpy as jnp
import optax

MOMENTUM = 0.95
STEPS = 5
COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # Jordan's, which Moonlight keeps; singular values that are not tiny end between 0.68 and 1.13
RMS = 0.2  # of AdamW's updates, as Moonlight found it


def axes(path: str) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
  """(input axes, output axes) of a weight that Muon updates, or None for what is left to AdamW.

  Parameters under `layers` carry the layer on axis 0, which Muon treats as a batch.
  """
  leaf = path.rsplit("/", 1)[-1]
  first = 1 if "/layers/" in f"/{path}" else 0
  if leaf in ("q", "k", "v"):
    return (first,), (first + 1, first + 2)
  if leaf == "o":
    return (first, first + 1), (first + 2,)
  if leaf in ("gate", "up", "down"):
    return (first,), (first + 1,)
  return None


def jordan(eps: float) -> optax.GradientTransformation:
  """Directions as `optax.contrib.muon` makes them, times sqrt(max(1, O / I))."""

  def dimensions(updates):
    return by_path(lambda path, u: optax.contrib.MuonDimensionNumbers(*axes(path)), updates)

  wider = lambda x_IO: jnp.sqrt(jnp.maximum(1, x_IO.shape[-1] / x_IO.shape[-2])) * x_IO
  return optax.chain(
      optax.contrib.scale_by_muon(COEFFICIENTS, STEPS, MOMENTUM, eps, weight_dimension_numbers=dimensions), _on_matrices(wider))


def moonlight() -> optax.GradientTransformation:
  """Orthogonal directions times 0.2 sqrt(max(I, O)): an orthogonal matrix has entries of RMS 1 / sqrt(max(I, O))."""
  scaled = lambda x_IO: RMS * math.sqrt(max(x_IO.shape[-2:])) * orthogonal(x_IO)
  return optax.chain(optax.trace(MOMENTUM, nesterov=True), _on_matrices(scaled))


def orthogonal(x_IO: jax.Array) -> jax.Array:
  """U V^T of x = U S V^T, nearly: every singular value goes five times through a s + b s^3 + c s^5, after |x| was made 1."""
  a, b, c = COEFFICIENTS
  tall = x_IO.shape[-2] > x_IO.shape[-1]
  x = x_IO.mT if tall else x_IO
  x = x / (jnp.linalg.norm(x, axis=(-2, -1), keepdims=True) + 1e-7)
  for _ in range(STEPS):
    square = x @ x.mT
    x = a * x + (b * square + c * square @ square) @ x
  return x.mT if tall else x


def _on_matrices(function) -> optax.GradientTransformation:
  """`function` of [..., I, O] on every weight as Muon sees it."""

  def one(path, x):
    inputs, outputs = axes(path)
    size = lambda among: math.prod(x.shape[i] for i in among)
    return function(x.reshape(*x.shape[: inputs[0]], size(inputs), size(outputs))).reshape(x.shape)

  return optax.stateless(lambda updates, params: by_path(one, updates))


def by_path(function, tree):
  """A flat {path: leaf} with function(path, leaf) for leaves; optax leaves empty nodes where a parameter is masked."""
  return jax.tree_util.tree_map_with_path(lambda at, leaf: function(at[-1].key, leaf), tree)
