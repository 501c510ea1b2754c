"""A model's parameters as the engine's steps read them: in the compute dtype, and on CPUs a layer at a time.

A stacked parameter, sliced, is copied by XLA's CPU backend, as much work as the product with one token's states that it is for.
So the layers are kept apart, and stacked again only inside the program, where the compiler cancels stack against slice.
"""

import jax
import jax.numpy as jnp

from bluelm_jax.models.config import with_execution


def for_engine(model):
  """The model without rematerialisation; on CPUs its layers are unrolled."""
  fields = {"remat": "none", **({"scan_layers": False} if jax.default_backend() == "cpu" else {})}
  return type(model)(with_execution(model.config, **fields))


def in_pieces(model, params):
  """The trainer's parameters for `model` (`for_engine`), a tuple in place of each stacked one where layers are unrolled."""
  decoder = getattr(model.config, "decoder", model.config)

  def one(path, x):
    names = [p.key for p in path]
    x = jnp.asarray(x, None if names[-1] in ("scale", "bias") else decoder.dtype)  # norms are computed as they are stored
    if "layers" not in names or decoder.scan_layers:
      return x
    return tuple(x[i] for i in range(x.shape[0]))

  return jax.tree_util.tree_map_with_path(one, params)


def whole(params):
  """The trainer's tree again, inside a program."""
  return jax.tree.map(lambda x: jnp.stack(x) if isinstance(x, tuple) else x, params, is_leaf=lambda x: isinstance(x, tuple))


def in_place_of(old, new):
  """`new` with the dtypes and places of `old`.

  Raises:
    ValueError: a parameter of another shape, or another set of parameters.
  """
  if jax.tree.structure(old) != jax.tree.structure(new):
    raise ValueError("the new weights are of another model; start an engine with them")

  def one(path, a, b):
    if a.shape != b.shape:
      raise ValueError(f"{jax.tree_util.keystr(path, simple=True, separator='/')} has shape {b.shape}, not {a.shape}; start another engine for this model")
    return jax.device_put(b.astype(a.dtype), a.sharding)

  return jax.tree_util.tree_map_with_path(one, old, new)
