"""Reading and writing HuggingFace safetensors directories, one tensor in memory at a time.

A file is 8 bytes of little-endian header length, a JSON header {name: {dtype, shape, data_offsets}}, and
the data (https://github.com/huggingface/safetensors, "Format"). Read here rather than through the
library for bfloat16 in numpy, and so that errors name file and tensor.
"""

import json
import os
import pathlib
from typing import Callable, Iterable

import ml_dtypes
import numpy as np

INDEX = "model.safetensors.index.json"
_DTYPES = {
    "F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16, "I64": np.int64, "I32": np.int32,
    "I16": np.int16, "I8": np.int8, "U8": np.uint8, "BOOL": np.bool_}
_NAMES = {np.dtype(v): k for k, v in _DTYPES.items()}


class Reader:
  """The tensors of a directory with model.safetensors or a sharded index.

  Attributes:
    tensors: name -> (file, dtype, shape, start, end), bytes counted from the start of the file.
  """

  def __init__(self, directory):
    directory = pathlib.Path(directory)
    files = _files(directory)
    self.directory = directory
    self.tensors = {}
    for file in files:
      self.tensors.update(_header(file))

  def find(self, names: Iterable[str]) -> str | None:
    """The first of `names` that exists."""
    return next((n for n in names if n in self.tensors), None)

  def check(self, name: str, shape: tuple[int, ...]) -> None:
    """ValueError if a tensor is absent or of another shape."""
    if name not in self.tensors:
      raise ValueError(f"{self.directory}: tensor {name} is missing; expected shape {shape}. Download the checkpoint again")
    file, _, found, _, _ = self.tensors[name]
    if tuple(found) != tuple(shape):
      raise ValueError(f"{file}: tensor {name} has shape {tuple(found)}, expected {tuple(shape)}; config.json and weights do not belong together")

  def read(self, name: str, index: int | None = None) -> np.ndarray:
    """Reads a tensor, or only `index` of its first axis."""
    file, dtype, shape, start, end = self.tensors[name]
    if index is not None:
      size, shape = (end - start) // shape[0], shape[1:]
      start, end = start + index * size, start + (index + 1) * size
    with open(file, "rb") as f:
      f.seek(start)
      return np.fromfile(f, dtype, (end - start) // dtype.itemsize).reshape(shape)


def _files(directory: pathlib.Path) -> list[pathlib.Path]:
  index = directory / INDEX
  if index.is_file():
    try:
      names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as e:
      raise ValueError(f"{index} is not a valid index; download the checkpoint again") from e
    for name in names:
      if not (directory / name).is_file():
        raise ValueError(f"{directory / name} is missing, though {INDEX} names it; download it")
    return [directory / name for name in names]
  if (directory / "model.safetensors").is_file():
    return [directory / "model.safetensors"]
  raise ValueError(f"{directory} has no model.safetensors and no {INDEX}; give a HuggingFace directory with safetensors weights")


def _header(file: pathlib.Path) -> dict:
  size = file.stat().st_size
  with open(file, "rb") as f:
    length = int.from_bytes(f.read(8), "little")
    if size < 8 or 8 + length > size:
      raise ValueError(f"{file} is truncated: {size} bytes, its header needs {8 + length}; download it again")
    try:
      header = json.loads(f.read(length))
      header.pop("__metadata__", None)
      if not all({"dtype", "shape", "data_offsets"} <= set(entry) for entry in header.values()):
        raise ValueError("an entry is incomplete")
    except (ValueError, TypeError, AttributeError) as e:
      raise ValueError(f"{file} has a damaged header; download it again") from e
  tensors = {}
  for name, entry in header.items():
    if entry["dtype"] not in _DTYPES:
      raise ValueError(f"{file}: tensor {name} has dtype {entry['dtype']}; convert the checkpoint to bf16, f16 or f32")
    start, end = (8 + length + o for o in entry["data_offsets"])
    dtype = np.dtype(_DTYPES[entry["dtype"]])
    if end > size:
      raise ValueError(f"{file} is truncated: tensor {name} of shape {tuple(entry['shape'])} ends at byte {end}, found {size}; download it again")
    if end - start != int(np.prod(entry["shape"], dtype=np.int64)) * dtype.itemsize:
      raise ValueError(f"{file}: tensor {name} has {end - start} bytes, expected {dtype} of shape {tuple(entry['shape'])}; download it again")
    tensors[name] = (file, dtype, tuple(entry["shape"]), start, end)
  return tensors


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
