"""Mesh axes and the one table from logical axis names to them."""

import flax.linen as nn
import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import numpy as np

MESH_AXES = ("data", "fsdp", "context", "tensor")

# Logical axes of parameters and activations, and the mesh axes that split them.
RULES = (
    ("batch", ("data", "fsdp")),
    ("sequence", "context"),
    ("embed", "fsdp"),
    ("heads", "tensor"),
    ("kv_heads", "tensor"),
    ("mlp", "tensor"),
    ("vocab", "tensor"),
    ("head_dim", None),
    ("layers", None),
    ("patch", None),
    ("position", None),
    ("norm", None),
)


def make_mesh(shape: dict[str, int] | None = None, devices=None) -> Mesh:
  """A mesh over all devices; axes not named have size 1, and one may be -1 (the rest).

  Raises:
    ValueError: an unknown axis, or sizes that do not multiply to the number of devices.
  """
  devices = np.asarray(jax.devices() if devices is None else devices)
  shape = {"fsdp": -1} if not shape else dict(shape)
  unknown = set(shape) - set(MESH_AXES)
  if unknown:
    raise ValueError(f"mesh axis {sorted(unknown)[0]!r} is unknown; use {', '.join(MESH_AXES)}")
  sizes = [shape.get(axis, 1) for axis in MESH_AXES]
  if -1 in sizes:
    known = -int(np.prod(sizes))
    sizes[sizes.index(-1)] = devices.size // known if known > 0 and devices.size % known == 0 else 0
  if int(np.prod(sizes)) != devices.size:
    raise ValueError(f"mesh {dict(zip(MESH_AXES, sizes))} does not cover {devices.size} devices; its sizes must multiply to that")
  return Mesh(devices.reshape(sizes), MESH_AXES)


def param_shardings(mesh: Mesh, boxed_params):
  """NamedShardings for a tree of logically annotated parameters (arrays or shapes).

  Raises:
    ValueError: a dimension that its mesh axes do not divide, naming the parameter.
  """
  specs = nn.logical_to_mesh(nn.get_partition_spec(boxed_params), RULES)
  shapes = nn.meta.unbox(boxed_params)

  def one(path, leaf, spec):
    for size, axes in zip(leaf.shape, spec):
      ways = int(np.prod([mesh.shape[a] for a in ((axes,) if isinstance(axes, str) else axes or ())]))
      if size % ways:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        raise ValueError(f"{name} {leaf.shape}: {size} does not divide over {axes} = {ways}; change the mesh")
    return NamedSharding(mesh, spec)

  return jax.tree_util.tree_map_with_path(one, shapes, specs)


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Rows of a batch (and row groups of tiles) over the data axes."""
  return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def replicated(mesh: Mesh) -> NamedSharding:
  return NamedSharding(mesh, PartitionSpec())
