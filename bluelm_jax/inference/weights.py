"""A model's parameters as the engine's steps read them: in the compute dtype or in fewer bits, and but for TPUs a layer at a time.

A stacked parameter, sliced, is copied by XLA's CPU and GPU backends, as much work as the product with one token's states that it
is for. So the layers are kept apart, and stacked again only inside the program, where the compiler cancels stack against slice.
"""

import jax
import jax.numpy as jnp

from bluelm_jax.interop.load import abstract_params
from bluelm_jax.models import quantized
from bluelm_jax.models.config import with_execution
from bluelm_jax.models.quantized import Quantized
from bluelm_jax.sharding import rules


class Weights:
  """How an engine keeps a model's parameters.

  Attributes:
    model: without rematerialisation; but for TPUs its layers are unrolled.
  """

  def __init__(self, model, mesh, bits: int | None, group: int | None):
    """
    Args:
      mesh: where they lie, or None for one device.
      bits, group: see `quantized.quantize`; None: as they are.
    """
    if group is not None and bits is None:
      raise ValueError(f"group {group} has no effect without bits; give both")
    if mesh is not None and bits is not None:
      raise ValueError("quantised weights are for one device; leave the mesh or the bits out")
    self.unrolled = jax.default_backend() != "tpu"
    fields = {"remat": "none", "quantized": bits is not None, **({"scan_layers": False} if self.unrolled else {})}
    self.model = type(model)(with_execution(model.config, **fields))
    self.mesh, self._bits, self._group = mesh, bits, group
    self._decoder = getattr(self.model.config, "decoder", self.model.config)

  def kept(self, params):
    """The trainer's parameters, from any mesh and dtype, as `whole` takes them."""
    if self.mesh is not None:
      params = jax.device_put(params, rules.param_shardings(self.mesh, abstract_params(self.model.config)))
    if self._bits is None:  # cast and taken apart one by one, so that never two whole trees of ours are there
      return jax.tree_util.tree_map_with_path(lambda path, x: self._in_layers(path, self._cast(path, x)), params)
    params = quantized.quantize(jax.tree_util.tree_map_with_path(self._cast, params), self._bits, self._group)
    return jax.tree_util.tree_map_with_path(self._in_layers, params, is_leaf=_is_quantized)

  def in_place_of(self, old, params):
    """The trainer's parameters as `kept` keeps them, with the dtypes and places of `old`.

    Raises:
      ValueError: a parameter of another shape, or another set of parameters.
    """
    new = self.kept(params)
    if jax.tree.structure(old) != jax.tree.structure(new):
      raise ValueError("the new weights are of another model; start an engine with them")

    def one(path, a, b):
      if a.shape != b.shape:
        raise ValueError(f"{jax.tree_util.keystr(path, simple=True, separator='/')} has shape {b.shape}, not {a.shape}; start another engine for this model")
      ours = self.unrolled and any(getattr(p, "key", None) == "layers" for p in path)  # a copy already
      return jax.device_put(b.astype(a.dtype), a.sharding, may_alias=None if ours else False)  # a trainer may give its own away

    return jax.tree_util.tree_map_with_path(one, old, new)

  def _cast(self, path, x):
    if path[-1].key in ("scale", "bias"):  # norms are computed as they are stored
      return jnp.asarray(x)
    return jnp.asarray(x, self.model.config.vision.dtype if path[0].key == "vision" else self._decoder.dtype)

  def _in_layers(self, path, x):
    if not self.unrolled or "layers" not in [p.key for p in path]:
      return x
    count = jax.tree.leaves(x)[0].shape[0]
    return tuple(jax.tree.map(lambda y: y[i], x) for i in range(count))


def whole(params):
  """The trainer's tree again, inside a program; layers may be Quantized."""
  is_layers = lambda x: isinstance(x, tuple)
  params = jax.tree.map(lambda x: jax.tree.map(lambda *y: jnp.stack(y), *x) if is_layers(x) else x, params, is_leaf=is_layers)
  return jax.tree_util.tree_map_with_path(
      lambda path, x: x if "layers" in [p.key for p in path] else quantized.whole(x), params, is_leaf=_is_quantized)


def _is_quantized(x) -> bool:
  return isinstance(x, Quantized)
