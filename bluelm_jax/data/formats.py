"""File formats: every file a sequence of records, read at random by index.

Records are Samples in ArrayRecord shards and dicts elsewhere. Objects hold paths and offsets alone, no open files, so that
they travel to reader processes cheaply; what is open is kept per process. An index lies outside a file: IndexError; a
record is damaged: ValueError in words that follow a file's name.

Shapes: N records, M members of a tar file, K bytes of a chunk.
"""

import functools
import json
import os
import re
import tarfile

import grain
import numpy as np

from bluelm_jax.data import files
from bluelm_jax.data import sample as sample_lib

_CHUNK = 1 << 24  # bytes
_GROUPS = 4  # row groups kept a process
_CHECKED = 4096  # batches of Arrow files that a process need not check again
_ESCAPED = re.compile(rb"\\u[dD][89a-fA-F]")  # half of a character beyond 16 bits, in JSON
_IMAGES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "avif")


def open_file(path: str):
  """The records of a file, by its suffix.

  Raises:
    ValueError: unknown suffix, no such format inside, or no records.
  """
  kinds = {".array_record": Shard, ".jsonl": JsonLines, ".json": JsonList, ".parquet": Parquet, ".tar": Tar, ".arrow": Arrow}
  kind = kinds.get(os.path.splitext(path)[1])
  if kind is None:
    raise ValueError(f"{path} is of no known kind; use {', '.join(kinds)}")
  found = kind(path)
  if not len(found):
    raise ValueError(f"{path} holds no records; build it with bluelm_jax.pipeline or name another file")
  return found


class Shard:
  """An ArrayRecord shard of Samples."""

  def __init__(self, path: str):
    try:
      self._records = grain.sources.ArrayRecordDataSource(files.local(path))
      self._length = len(self._records)
    except RuntimeError as e:
      raise ValueError(f"{path} is no ArrayRecord shard, or a damaged one; build it with bluelm_jax.pipeline") from e

  def __len__(self) -> int:
    return self._length

  def __getitem__(self, index: int) -> sample_lib.Sample:
    try:
      return sample_lib.decode(self._records[index])
    except (RuntimeError, ValueError) as e:
      raise ValueError("is damaged or no Sample; rebuild the shard with bluelm_jax.pipeline") from e


class JsonLines:
  """A JSON object a line; one scan finds the lines, blank ones left out."""

  def __init__(self, path: str):
    self._path = path
    breaks, size = [], 0
    with files.open_file(path) as f:
      while chunk := f.read(_CHUNK):
        breaks.append(np.flatnonzero(np.frombuffer(chunk, np.uint8) == ord("\n")) + size)
        size += len(chunk)
    stops = np.concatenate([*breaks, [size]]).astype(np.int64)
    starts = np.concatenate([[0], stops[:-1] + 1])
    self._spans_N2 = np.stack([starts, stops], 1)[stops - starts > 1]  # a lone \r is blank too

  def __len__(self) -> int:
    return len(self._spans_N2)

  def __getitem__(self, index: int) -> dict:
    start, stop = self._spans_N2[index].tolist()
    return _json(files.read(self._path, start, stop))


class JsonList:
  """One JSON list of objects, as LLaVA's data sets are; all of it is held in memory."""

  def __init__(self, path: str):
    try:
      self._records = json.loads(files.read(path))
    except (ValueError, RecursionError) as e:
      raise ValueError(f"{path} is no JSON ({str(e)[:80]}); mend it, or call it .jsonl if it holds an object a line") from e
    if not isinstance(self._records, list):
      raise ValueError(f"{path} is no list of records; write one, or an object a line in a .jsonl file")

  def __len__(self) -> int:
    return len(self._records)

  def __getitem__(self, index: int) -> dict:
    return _object(self._records[index], escaped=True)


class Parquet:
  """Rows of a Parquet file. A row costs the reading of its row group: write groups of some hundred rows, or ArrayRecord."""

  def __init__(self, path: str):
    self._path = path
    try:
      meta = _parquet(path).metadata
    except (_pyarrow().ArrowException, OSError) as e:
      raise ValueError(f"{path} is no Parquet file, or a damaged one; write it again") from e
    self._stops = np.cumsum([meta.row_group(i).num_rows for i in range(meta.num_row_groups)], dtype=np.int64)

  def __len__(self) -> int:
    return int(self._stops[-1]) if len(self._stops) else 0

  def __getitem__(self, index: int) -> dict:
    group = int(np.searchsorted(self._stops, index, "right"))
    try:
      table = _row_group(self._path, group)
    except (_pyarrow().ArrowException, OSError) as e:  # pages that do not unpack are OSErrors
      raise ValueError(f"lies in the damaged row group {group}; write the file again") from e
    return _row(table, index - int(self._stops[group]) + table.num_rows)


class Arrow:
  """A file of a data set that HuggingFace's `save_to_disk` wrote; mapped, not read."""

  def __init__(self, path: str):
    self._path = files.local(path)
    try:
      self._stops = np.cumsum([b.num_rows for b in _arrow(self._path)], dtype=np.int64)
    except (_pyarrow().ArrowException, OSError) as e:
      raise ValueError(f"{path} is no Arrow file, or a damaged one; save the data set again") from e

  def __len__(self) -> int:
    return int(self._stops[-1]) if len(self._stops) else 0

  def __getitem__(self, index: int) -> dict:
    number = int(np.searchsorted(self._stops, index, "right"))
    try:
      batch = _batch(self._path, number)
    except _pyarrow().ArrowException as e:
      raise ValueError(f"lies in the damaged batch {number}; save the data set again") from e
    return _row(batch, index - int(self._stops[number]) + batch.num_rows)


class Tar:
  """A WebDataset: members that share a name up to its first dot are one record; one scan of the headers finds them.

  key.json gives the fields, key.txt the field "text", images the field "images" in the order of their names.
  """

  def __init__(self, path: str):
    self._path, found = path, {}
    try:
      with files.open_file(path) as f, tarfile.open(fileobj=f, mode="r:") as tar:
        for member in tar:
          folder, name = os.path.split(member.name)
          key, _, extension = name.partition(".")
          if member.isfile() and key:  # a name that begins with a dot is some tool's
            found.setdefault((folder, key), []).append((extension.lower(), member.offset_data, member.size))
        f.seek(tar.offset)
        if f.read(tarfile.BLOCKSIZE).strip(b"\0"):  # the library takes a damaged header for the end
          raise tarfile.ReadError("no header and no end")
    except (tarfile.TarError, EOFError) as e:
      raise ValueError(f"{path} is no tar file, or a damaged or compressed one; write it again, uncompressed") from e
    members = [m for record in found.values() for m in sorted(record)]
    self._extensions = sorted({extension for extension, _, _ in members})
    number = {e: i for i, e in enumerate(self._extensions)}
    self._members_M3 = np.array([(number[e], at, size) for e, at, size in members], np.int64).reshape(-1, 3)  # 24 bytes each: shards hold many
    self._starts = np.cumsum([0, *map(len, found.values())])

  def __len__(self) -> int:
    return len(self._starts) - 1

  def __getitem__(self, index: int) -> dict:
    record, images = {}, []
    for number, at, size in self._members_M3[self._starts[index] : self._starts[index + 1]].tolist():
      extension, data = self._extensions[number], files.read(self._path, at, at + size)
      if extension == "json":
        record |= _json(data)
      elif extension == "txt":
        record["text"] = data.decode()
      elif extension.rpartition(".")[2] in _IMAGES:
        images.append(data)
      else:
        raise ValueError(f"has a member of kind {extension!r}; use json, txt, {', '.join(_IMAGES)}")
    if images:
      record.pop("image", None)  # its name
      record["images"] = images
    return record


def _json(data: bytes) -> dict:
  try:
    return _object(json.loads(data), escaped=_ESCAPED.search(data) is not None)
  except (ValueError, RecursionError) as e:  # of brackets within brackets
    raise ValueError(f"is no JSON object ({' '.join(str(e).split())[:80]}); mend the line") from e


def _object(value, escaped: bool) -> dict:
  if not isinstance(value, dict):
    raise ValueError(f"is a {type(value).__name__}; a record is an object")
  if escaped:
    json.dumps(value, ensure_ascii=False).encode()  # half a character is no text: no tokenizer takes it, and no file
  return value


def _row(table, index: int) -> dict:
  return table.slice(index, 1).to_pylist()[0]


def _pyarrow():
  try:
    import pyarrow.ipc  # heavy, and few data sets need it
    import pyarrow.parquet
    return pyarrow
  except ImportError as e:
    raise ValueError("Parquet files and HuggingFace data sets need pyarrow; pip install 'bluelm_jax[formats]'") from e


@functools.lru_cache(64)
def _parquet(path: str):
  return _pyarrow().parquet.ParquetFile(files.open_file(path))


@functools.lru_cache(_GROUPS)
def _row_group(path: str, group: int):
  return _parquet(path).read_row_group(group)


@functools.lru_cache(64)
def _arrow(path: str) -> list:
  pa = _pyarrow()
  source = pa.memory_map(path)
  try:
    return pa.ipc.open_stream(source).read_all().to_batches()
  except pa.ArrowInvalid:  # data sets are streams; pyarrow's own files are not
    return pa.ipc.open_file(source).read_all().to_batches()


@functools.lru_cache(_CHECKED)
def _batch(path: str, number: int):
  """A batch whose offsets lie inside it: what is mapped is read as it is, and a wrong offset would end the process."""
  batch = _arrow(path)[number]
  batch.validate(full=True)
  return batch
