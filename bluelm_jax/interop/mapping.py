"""How our parameters correspond to HuggingFace tensors: one table a family, used in both directions.

Shapes: D width, H heads, d head size, p patch side.
"""

import dataclasses
from typing import Callable, Iterator, NamedTuple

import numpy as np

from bluelm_jax.interop import safetensors_io

_HEAD = "lm_head.weight"  # stands outside the prefix


class Tensor(NamedTuple):
  """A parameter that need not be in memory: `read()` gives all of it, `read(i)` layer i of a stacked one."""

  shape: tuple[int, ...]
  dtype: np.dtype
  read: Callable[..., np.ndarray]


def in_memory(value) -> Tensor:
  return Tensor(value.shape, np.dtype(value.dtype), lambda i=None: np.asarray(value if i is None else value[i]))


@dataclasses.dataclass(frozen=True)
class Entry:
  """One parameter.

  Attributes:
    path: ours, e.g. "layers/attention/q"; under "layers" it is stacked over layers.
    name: theirs, without the family's prefix; "{i}" is the layer.
    kind: how the arrays correspond; see `to_ours`.
  """

  path: str
  name: str
  kind: str = "same"

  @property
  def stacked(self) -> bool:
    return "{i}" in self.name


def decoder_table(config) -> list[Entry]:
  """Llama, Qwen2 and Qwen3."""
  layer = "layers.{i}."
  table = [
      Entry("embedding", "embed_tokens.weight"),
      Entry("layers/attention_norm/scale", layer + "input_layernorm.weight"),
      Entry("layers/mlp_norm/scale", layer + "post_attention_layernorm.weight"),
      Entry("layers/attention/o", layer + "self_attn.o_proj.weight", "heads_out"),
      *(Entry(f"layers/mlp/{n}", layer + f"mlp.{n}_proj.weight", "transpose") for n in ("gate", "up", "down")),
      *(Entry(f"layers/attention/{n}", layer + f"self_attn.{n}_proj.weight", "heads_in") for n in "qkv"),
      Entry("final_norm/scale", "norm.weight"),
  ]
  if config.qkv_bias:
    table += [Entry(f"layers/attention/{n}_bias", layer + f"self_attn.{n}_proj.bias", "heads_bias") for n in "qkv"]
  if config.qk_norm:
    table += [Entry(f"layers/attention/{n}_norm/scale", layer + f"self_attn.{n}_norm.weight") for n in "qk"]
  if not config.tie_embeddings:
    table.append(Entry("lm_head", _HEAD, "transpose"))
  return table


def vision_table() -> list[Entry]:
  """SiglipVisionModel."""
  layer = "encoder.layers.{i}."
  table = [
      Entry("patch", "embeddings.patch_embedding.weight", "patches"),
      Entry("patch_bias", "embeddings.patch_embedding.bias"),
      Entry("position", "embeddings.position_embedding.weight"),
      Entry("layers/attention/o", layer + "self_attn.out_proj.weight", "heads_out"),
      Entry("layers/attention/o_bias", layer + "self_attn.out_proj.bias"),
      Entry("final_norm/scale", "post_layernorm.weight"),
      Entry("final_norm/bias", "post_layernorm.bias"),
  ]
  for n in "qkv":
    table.append(Entry(f"layers/attention/{n}", layer + f"self_attn.{n}_proj.weight", "heads_in"))
    table.append(Entry(f"layers/attention/{n}_bias", layer + f"self_attn.{n}_proj.bias", "heads_bias"))
  for ours, theirs in (("attention_norm", "layer_norm1"), ("mlp_norm", "layer_norm2")):
    table.append(Entry(f"layers/{ours}/scale", layer + f"{theirs}.weight"))
    table.append(Entry(f"layers/{ours}/bias", layer + f"{theirs}.bias"))
  for ours, theirs in (("up", "fc1"), ("down", "fc2")):
    table.append(Entry(f"layers/mlp/{ours}", layer + f"mlp.{theirs}.weight", "transpose"))
    table.append(Entry(f"layers/mlp/{ours}_bias", layer + f"mlp.{theirs}.bias"))
  return table


# Tensors that carry nothing we need: (suffixes, beginnings).
_UNUSED_SUFFIXES = ("rotary_emb.inv_freq", "position_ids")
_UNUSED_STARTS = ("head.", "vision_model.head.", "text_model.", "logit_scale", "logit_bias")


def their_shape(kind: str, shape: tuple[int, ...]) -> tuple[int, ...]:
  """The HuggingFace shape of a parameter whose (unstacked) shape is ours."""
  if kind == "transpose":
    return shape[::-1]
  if kind == "heads_in":
    return shape[1] * shape[2], shape[0]
  if kind == "heads_out":
    return shape[2], shape[0] * shape[1]
  if kind == "heads_bias":
    return (shape[0] * shape[1],)
  if kind == "patches":
    p = round((shape[0] // 3) ** 0.5)
    return shape[1], 3, p, p
  assert kind == "same", kind
  return shape


def to_ours(kind: str, x: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
  """same; transpose [out, in] -> [in, out]; heads_in [H d, D] -> [D, H, d]; heads_out [D, H d] -> [H, d, D];
  heads_bias [H d] -> [H, d]; patches [D, 3, p, p] -> [p p 3, D]."""
  if kind in ("transpose", "heads_in", "heads_out"):
    return x.T.reshape(shape)
  if kind == "patches":
    return x.transpose(2, 3, 1, 0).reshape(shape)
  return x.reshape(shape)


def to_theirs(kind: str, x: np.ndarray) -> np.ndarray:
  """The inverse of `to_ours`."""
  shape = their_shape(kind, x.shape)
  if kind in ("transpose", "heads_in", "heads_out"):
    return x.reshape(shape[::-1]).T
  if kind == "patches":
    return x.reshape(shape[2], shape[3], 3, shape[0]).transpose(3, 2, 0, 1)
  return x.reshape(shape)


def ours(reader: safetensors_io.Reader, table: list[Entry], shapes: dict[str, tuple[int, ...]], prefixes: tuple[str, ...]) -> dict[str, Tensor]:
  """All parameters, flat by our paths, in the dtypes of the file; nothing is read yet but headers.

  Args:
    shapes: our path -> shape, stacked ones with the layer first.
    prefixes: what may stand before the table's names; the one that the file uses most is taken.

  Raises:
    ValueError: a missing tensor, a wrong shape, or a tensor the family does not know.
  """
  assert {e.path for e in table} == set(shapes), {e.path for e in table} ^ set(shapes)
  first = [e.name.format(i=0) for e in table]
  prefix = max(prefixes, key=lambda p: sum(p + name in reader.tensors for name in first))
  tensors, used = {}, set()
  for entry in table:
    shape = shapes[entry.path]
    one = shape[1:] if entry.stacked else shape
    names = [_full_name(prefix, entry, i) for i in range(shape[0] if entry.stacked else 1)]
    for name in names:
      reader.check(name, their_shape(entry.kind, one))
    used.update(names)
    tensors[entry.path] = _tensor(reader, entry, names, shape, one)
  _refuse_unknown(reader, used, prefix)
  return tensors


def _full_name(prefix: str, entry: Entry, layer: int | None) -> str:
  return ("" if entry.name == _HEAD else prefix) + entry.name.format(i=layer)


def _tensor(reader, entry, names, shape, one) -> Tensor:
  dtype = reader.tensors[names[0]][1]

  def read(i=None):
    if i is not None or not entry.stacked:
      return np.ascontiguousarray(to_ours(entry.kind, reader.read(names[i or 0]), one))
    stack = np.empty(shape, dtype)
    for layer, name in enumerate(names):
      stack[layer] = to_ours(entry.kind, reader.read(name), one)
    return stack

  return Tensor(shape, dtype, read)


def _refuse_unknown(reader, used, prefix):
  for name in set(reader.tensors) - used:
    file, tied = reader.tensors[name][0], prefix + "embed_tokens.weight"
    if name == _HEAD and tied in used:
      if not reader.same(name, tied):
        raise ValueError(f"{file}: {name} differs from {tied}, though config.json ties them; set tie_word_embeddings to false there")
    elif not name.endswith(_UNUSED_SUFFIXES) and not name.startswith((*_UNUSED_STARTS, prefix + "head.")):
      raise ValueError(f"{file}: tensor {name} has no place in this model; config.json describes fewer parts than the file holds")


def theirs(tensors: dict[str, Tensor], table: list[Entry], prefix: str) -> Iterator[tuple]:
  """(name, shape, dtype, produce) of every HuggingFace tensor, for `safetensors_io.write`."""
  for entry in table:
    value = tensors[entry.path]
    for i in range(value.shape[0]) if entry.stacked else (None,):
      shape = their_shape(entry.kind, value.shape[1:] if entry.stacked else value.shape)
      yield _full_name(prefix, entry, i), shape, value.dtype, lambda v=value, k=entry.kind, i=i: to_theirs(k, v.read(i))
