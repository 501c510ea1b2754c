"""Mesh axes and the one table from logical axis names to them."""

import contextlib
import functools
import math

import flax.linen as nn
import jax
from jax.experimental import mesh_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import numpy as np

MESH_AXES = ("data", "fsdp", "expert", "context", "tensor")

# Logical axes of parameters and activations, and the mesh axes that split them.
RULES = {
    "batch": ("data", "fsdp", "expert"),  # rows; layers without experts use that axis as one more of rows
    "groups": ("data", "expert"),  # rows that fsdp ranks share
    "sequence": ("context",),
    "tiles": ("data", "fsdp", "expert", "context", "tensor"),  # the vision tower is data-parallel over all devices
    "embed": ("fsdp",),
    "vision_embed": ("fsdp", "tensor"),  # stored in pieces, used whole: see "tiles"
    "vision_heads": (),
    "vision_mlp": (),
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "mlp": ("tensor",),
    "vocab": ("tensor",),
    "experts": ("expert",),
    "head_dim": (),
    "layers": (),
    "patch": (),
    "position": (),
    "norm": (),
}


def spec(logical_axes, mesh_axes=MESH_AXES) -> PartitionSpec:
  """The PartitionSpec of an array from its logical axes (None: not split), on the axes a mesh has.

  Raises:
    ValueError: a logical axis without a rule, or two dimensions that claim the same mesh axis.
  """
  taken, parts = {}, []
  for name in logical_axes:
    if name is not None and name not in RULES:
      raise ValueError(f"logical axis {name!r} has no rule; use {', '.join(RULES)}")
    axes = tuple(a for a in RULES.get(name, ()) if a in mesh_axes)
    for axis in axes:
      if axis in taken:
        raise ValueError(f"axes {taken[axis]!r} and {name!r} of {tuple(logical_axes)} both claim mesh axis {axis!r}; rename one of them")
      taken[axis] = name
    parts.append(axes[0] if len(axes) == 1 else axes or None)
  return PartitionSpec(*parts)


def ways(mesh, name: str) -> int:
  """Into how many parts the mesh splits a logical axis."""
  return math.prod(mesh.shape.get(axis, 1) for axis in RULES[name])


def constrain(x, *logical_axes):
  """`x`, laid out on the mesh in context as its logical axes say; dimensions that do not divide stay whole.

  A hint to the compiler: without a mesh, or on one device, nothing happens.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or mesh.size == 1:
    return x
  names = [name if name and size % ways(mesh, name) == 0 else None for name, size in zip(logical_axes, x.shape, strict=True)]
  return jax.lax.with_sharding_constraint(x, spec(names, mesh.axis_names))


def gathered(weight, axes):
  """A weight as a layer uses it: whole over fsdp, so that weights move and activations stay (ZeRO-3, arXiv 1910.02054).

  Its gradient goes straight back to the pieces in which the weight is stored: a constraint alone would first
  make it whole on every device.
  """
  return _gathered(weight, tuple(axes))


def whole(axes) -> list[str | None]:
  """The logical axes of a weight whose pieces on fsdp ranks are put together."""
  return [None if axis in ("embed", "vision_embed") else axis for axis in axes]


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _gathered(weight, axes):
  return constrain(weight, *whole(axes))


def _scattered(axes, _, gradient):
  # As a matrix: compilers turn sums of matrices into reduce-scatters, but not those of weights with heads apart.
  at = next((i for i, axis in enumerate(axes) if axis in ("embed", "vision_embed")), None)
  if at not in (0, gradient.ndim - 1) or gradient.ndim < 3:
    return (constrain(gradient, *axes),)
  inner = axes[1] if at == 0 else axes[0]  # heads; the size of a head is not split
  flat = gradient.reshape((gradient.shape[0], -1) if at == 0 else (-1, gradient.shape[-1]))
  flat = constrain(flat, *((axes[0], inner) if at == 0 else (inner, axes[-1])))
  return (constrain(flat.reshape(gradient.shape), *axes),)


_gathered.defvjp(lambda weight, axes: (_gathered(weight, axes), None), _scattered)


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
  if devices.flat[0].platform == "tpu":  # neighbours on an axis are neighbours in the torus
    return Mesh(mesh_utils.create_device_mesh(sizes, list(devices.flat), allow_split_physical_axes=True), MESH_AXES)
  return Mesh(devices.reshape(sizes), MESH_AXES)


def param_shardings(mesh: Mesh, boxed_params, pieces: bool = True):
  """NamedShardings for a tree of logically annotated parameters (arrays or shapes).

  Args:
    pieces: whether fsdp ranks hold pieces of a weight, or each all of it.

  Raises:
    ValueError: a dimension that its mesh axes do not divide, naming the parameter.
  """
  shapes = nn.meta.unbox(boxed_params)

  def one(path, box, leaf):
    names = box.names if isinstance(box, nn.LogicallyPartitioned) else [None] * leaf.ndim
    partition = spec(names if pieces else whole(names), mesh.axis_names)
    for size, axes in zip(leaf.shape, partition):
      parts = math.prod(mesh.shape[a] for a in ((axes,) if isinstance(axes, str) else axes or ()))
      if size % parts:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        raise ValueError(f"{name} {leaf.shape}: {size} does not divide over {axes} = {parts}; change the mesh")
    return NamedSharding(mesh, partition)

  is_box = lambda x: isinstance(x, nn.meta.AxisMetadata)
  return jax.tree_util.tree_map_with_path(one, boxed_params, shapes, is_leaf=is_box)


def within(mesh: Mesh | None):
  """A context with this mesh, or with none."""
  return jax.set_mesh(mesh) if mesh is not None else contextlib.nullcontext()


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Rows of a batch (and row groups of tiles) over the data axes."""
  return NamedSharding(mesh, spec(["batch"], mesh.axis_names))


def replicated(mesh: Mesh) -> NamedSharding:
  return NamedSharding(mesh, PartitionSpec())
