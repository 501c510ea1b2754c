"""Files of a stage, on local disks or object stores: whole or not there at all."""

import io
import json
from typing import Any, Iterable
import uuid

from etils import epath
import msgpack
import numpy as np

from bluelm_jax.data.sample import Sample


def write(path: str, data: bytes) -> None:
  """Under another name first, so that half a file never counts; an object store shows what is whole alone, and would copy it."""
  path = epath.Path(path)
  if "://" in str(path):
    path.write_bytes(data)
    return
  part = path.with_name(f"{path.name}.{uuid.uuid4().hex}.part")
  part.write_bytes(data)
  part.replace(path)


def read(path: str) -> bytes:
  return epath.Path(path).read_bytes()


def exists(path: str) -> bool:
  return epath.Path(path).exists()


def write_json(path: str, value: Any) -> None:
  write(path, json.dumps(value, ensure_ascii=False, indent=1, sort_keys=True).encode())


def read_json(path: str) -> Any:
  return json.loads(read(path))


def write_samples(path: str, samples: Iterable[Sample]) -> None:
  write(path, msgpack.packb([vars(sample) for sample in samples]))


def read_samples(path: str) -> list[Sample]:
  rows = msgpack.unpackb(read(path))
  return [Sample(**{**row, "messages": tuple(row["messages"]), "images": tuple(row["images"])}) for row in rows]


def write_arrays(path: str, **arrays: np.ndarray) -> None:
  out = io.BytesIO()
  np.savez(out, **arrays)
  write(path, out.getvalue())


def read_arrays(path: str) -> Any:
  """An npz archive; an array is read when it is asked for."""
  return np.load(io.BytesIO(read(path)))
