"""Reading and writing HuggingFace safetensors directories, one tensor in memory at a time.

A file is 8 bytes of little-endian header length, a JSON header {name: {dtype, shape, data_offsets}}, and
the data (https://github.com/huggingface/safetensors, "Format"). Read here rather than through the
library for bfloat16 in numpy, and so that errors name file and tensor.
"""

import json
import math
import operator
import os
import pathlib
from typing import Callable, Iterable

import ml_dtypes
import numpy as np

_PIECE = 1 << 24
INDEX = "model.safetensors.index.json"
_DTYPES = {
    "F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16, "I64": np.int64, "I32": np.int32,
    "I16": np.int16, "I8": np.int8, "U8": np.uint8, "BOOL": np.bool_}
_FLOATS = [np.dtype(_DTYPES[k]) for k in ("F64", "F32", "F16", "BF16")]
_NAMES = {np.dtype(v): k for k, v in _DTYPES.items()}


class Reader:
  """The tensors of a directory with model.safetensors or a sharded index.

  Attributes:
    source: the file that says which tensors there are: the index, or the only file.
    tensors: name -> (file, dtype, shape, start, end), bytes counted from the start of the file.
  """

  def __init__(self, directory):
    self.source, files = _files(pathlib.Path(directory))
    self.tensors = {}
    for file in files:
      self.tensors.update(_header(file))

  def check(self, name: str, shape: tuple[int, ...]) -> None:
    """ValueError if a tensor is absent, of another shape, or no weights."""
    if name not in self.tensors:
      raise ValueError(f"{self.source}: tensor {name} is missing; expected shape {tuple(shape)}. Download the checkpoint again")
    file, dtype, found, _, _ = self.tensors[name]
    if tuple(found) != tuple(shape):
      raise ValueError(f"{file}: tensor {name} has shape {tuple(found)}, expected {tuple(shape)}; config.json and weights do not belong together")
    if dtype not in _FLOATS:
      raise ValueError(f"{file}: tensor {name} has dtype {dtype}, but weights must be floating; convert the checkpoint to bf16, f16 or f32")

  def read(self, name: str, index: int | None = None) -> np.ndarray:
    """Reads a tensor, or only `index` of its first axis."""
    file, dtype, shape, start, end = self.tensors[name]
    if index is not None:
      size, shape = (end - start) // shape[0], shape[1:]
      start, end = start + index * size, start + (index + 1) * size
    with open(file, "rb") as f:
      f.seek(start)
      return np.fromfile(f, dtype, (end - start) // dtype.itemsize).reshape(shape)

  def same(self, first: str, second: str) -> bool:
    """Whether two tensors are equal bit for bit; compared in pieces."""
    (a, *kind_a, start_a, end_a), (b, *kind_b, start_b, _) = self.tensors[first], self.tensors[second]
    if kind_a != kind_b:
      return False
    with open(a, "rb") as x, open(b, "rb") as y:
      x.seek(start_a)
      y.seek(start_b)
      pieces = (min(_PIECE, end_a - i) for i in range(start_a, end_a, _PIECE))
      return all(x.read(n) == y.read(n) for n in pieces)


def _files(directory: pathlib.Path) -> tuple[pathlib.Path, list[pathlib.Path]]:
  """Where the list of tensors stands, and the files that hold them."""
  index = directory / INDEX
  if index.is_file():
    try:
      names = sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values()))
      files = [directory / name for name in names]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
      raise ValueError(f"{index} is not a valid index; download the checkpoint again") from e
    for file in files:
      if not file.is_file():
        raise ValueError(f"{file} is missing, though {INDEX} names it; download it")
    return index, files
  if (file := directory / "model.safetensors").is_file():
    return file, [file]
  raise ValueError(f"{directory} has no model.safetensors and no {INDEX}; give a HuggingFace directory with safetensors weights")


def _header(file: pathlib.Path) -> dict:
  size = file.stat().st_size
  with open(file, "rb") as f:
    _refuse_stand_in(file, f.read(64))
    f.seek(0)
    length = int.from_bytes(f.read(8), "little")
    if size < 8 or 8 + length > size:
      raise ValueError(f"{file} is truncated: {size} bytes, its header needs {8 + length}; download it again")
    try:
      header = json.loads(f.read(length))
      entries = {name: _entry(e) for name, e in header.items() if name != "__metadata__"}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
      raise ValueError(f"{file} has a damaged header; download it again") from e
  tensors = {}
  for name, (dtype, shape, *offsets) in entries.items():
    if dtype not in _DTYPES:
      raise ValueError(f"{file}: tensor {name} has dtype {dtype}; convert the checkpoint to bf16, f16 or f32")
    start, end = (8 + length + o for o in offsets)
    dtype = np.dtype(_DTYPES[dtype])
    if end > size:
      raise ValueError(f"{file} is truncated: tensor {name} of shape {shape} ends at byte {end}, found {size}; download it again")
    if end - start != math.prod(shape) * dtype.itemsize:
      raise ValueError(f"{file}: tensor {name} has {end - start} bytes, expected {dtype} of shape {shape}; download it again")
    tensors[name] = (file, dtype, shape, start, end)
  return tensors


def _refuse_stand_in(file: pathlib.Path, beginning: bytes) -> None:
  """What a failed download leaves in a file's place."""
  if beginning.startswith(b"version https://git-lfs"):
    raise ValueError(f"{file} is a Git LFS pointer, not weights; run git lfs pull")
  if beginning.lstrip().lower().startswith((b"<!doctype", b"<html")):
    raise ValueError(f"{file} is a web page, not weights; download the file itself")


def _entry(entry: dict) -> tuple:
  """(dtype name, shape, start, end) of a header's entry; ValueError, KeyError or TypeError where it is none."""
  shape, (start, end) = tuple(map(operator.index, entry["shape"])), map(operator.index, entry["data_offsets"])
  if not isinstance(entry["dtype"], str) or min(shape, default=0) < 0 or not 0 <= start <= end:
    raise ValueError("no tensor")
  return entry["dtype"], shape, start, end


def write(directory, tensors: Iterable[tuple[str, tuple[int, ...], np.dtype, Callable[[], np.ndarray]]], shard_bytes: int = 4 << 30) -> None:
  """Writes (name, shape, dtype, produce) tensors, calling `produce` when each one's turn comes.

  Over `shard_bytes` the weights are split into several files with an index. Files appear under their
  names only when complete.
  """
  shards, size = [[]], 0
  for entry in tensors:
    _, shape, dtype, _ = entry
    n = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
    if shards[-1] and size + n > shard_bytes:
      shards.append([])
      size = 0
    shards[-1].append((*entry, n))
    size += n
  directory = pathlib.Path(directory)
  weight_map, total = {}, 0
  for i, shard in enumerate(shards):
    name = "model.safetensors" if len(shards) == 1 else f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors"
    _write_file(directory / name, shard)
    weight_map.update({tensor[0]: name for tensor in shard})
    total += sum(tensor[-1] for tensor in shard)
  if len(shards) > 1:
    (directory / INDEX).write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}, indent=1))


def _bytes(value: np.ndarray, name: str, shape, dtype) -> memoryview:
  assert value.shape == tuple(shape) and value.dtype == dtype, (name, value.shape, shape)
  return np.ascontiguousarray(value).reshape(-1).view(np.uint8).data


def _write_file(path: pathlib.Path, tensors) -> None:
  header, offset = {"__metadata__": {"format": "pt"}}, 0
  for name, shape, dtype, _, n in tensors:
    header[name] = {"dtype": _NAMES[np.dtype(dtype)], "shape": list(shape), "data_offsets": [offset, offset + n]}
    offset += n
  text = json.dumps(header).encode()
  text += b" " * (-len(text) % 8)
  temporary = path.with_suffix(".tmp")
  with open(temporary, "wb") as f:
    f.write(len(text).to_bytes(8, "little") + text)
    for name, shape, dtype, produce, _ in tensors:
      f.write(_bytes(produce(), name, shape, dtype))  # nothing keeps the value, so only one is alive
  os.replace(temporary, path)
