"""Data files by path, glob, directory or URL: local disks and gs:// alike, through fsspec."""

import functools
import json
import os
import pathlib
from typing import Sequence

import fsspec

ASSETS = pathlib.Path(__file__).parent / "assets"
SUFFIXES = (".array_record", ".jsonl", ".json", ".parquet", ".tar", ".arrow")
_FIX = "check the source's path or build it with bluelm_jax.pipeline"


def expand(paths: str | Sequence[str]) -> list[str]:
  """The data files that paths stand for, in order.

  Args:
    paths: one or several, each a file, a glob, a directory with files of one kind, or a data set that HuggingFace's
      `save_to_disk` wrote; "assets/NAME" is what the package ships.

  Raises:
    ValueError: nothing is there, or a directory with files of several kinds.
  """
  found = []
  for path in (paths,) if isinstance(paths, str) else paths:
    fs, inner = _filesystem(path)
    if fs.isfile(inner):
      found.append(_named(fs, inner))
    elif fs.isdir(inner):
      found += [_named(fs, f) for f in _directory(fs, inner, path)]
    else:
      matches = [f for f in sorted(fs.glob(inner)) if fs.isfile(f)] if set("*?[") & set(inner) else []
      if not matches:
        raise ValueError(f"no data at {inner if path.startswith('assets/') else path}; {_FIX}")
      found += [_named(fs, f) for f in matches]
  twice = next((f for i, f in enumerate(found) if f in found[:i]), None)
  if twice or not found:
    raise ValueError(f"{twice} is named twice; name it once" if twice else f"no data file is named; {_FIX}")
  return found


def _directory(fs, inner: str, path: str) -> list[str]:
  if fs.isfile(f"{inner}/dataset_dict.json"):
    splits = json.loads(fs.cat_file(f"{inner}/dataset_dict.json"))["splits"]
    raise ValueError(f"{path} holds the splits {', '.join(splits)}; name one, as {path}/{splits[0]}")
  if fs.isfile(f"{inner}/state.json"):
    return [f"{inner}/{f['filename']}" for f in json.loads(fs.cat_file(f"{inner}/state.json"))["_data_files"]]
  found = [f for f in sorted(fs.find(inner)) if f.endswith(SUFFIXES) and not f.endswith(".json")]  # .json may be anything
  kinds = sorted({os.path.splitext(f)[1] for f in found})
  if len(kinds) != 1:
    raise ValueError(f"{path} holds {' and '.join(kinds)} files; name those you mean" if kinds else f"no data at {path}; {_FIX}")
  return found


@functools.lru_cache(1024)  # a record of a large file would cost mostly this
def _filesystem(path: str):
  """(filesystem, path within it)."""
  if path.startswith("assets/"):
    path = str(ASSETS / path.removeprefix("assets/"))
  try:
    return fsspec.core.url_to_fs(path)
  except (ImportError, ValueError) as e:  # no such protocol, or its library is not there
    raise ValueError(f"{path} cannot be reached ({' '.join(str(e).split())[:100]}); pip install 'bluelm_jax[formats]' for gs://") from e


def _named(fs, inner: str) -> str:
  """A path that `_filesystem` takes again; local ones stay plain."""
  return inner if _is_local(fs) else fs.unstrip_protocol(inner)


def _is_local(fs) -> bool:
  return "file" in ((fs.protocol,) if isinstance(fs.protocol, str) else fs.protocol)


def open_file(path: str):
  """A binary file to read and seek in."""
  fs, inner = _filesystem(path)
  return fs.open(inner, "rb")


def read(path: str, start: int | None = None, stop: int | None = None) -> bytes:
  """Bytes `start` to `stop` of a file, or all of it; FileNotFoundError where it is not."""
  fs, inner = _filesystem(path)
  return fs.cat_file(inner, start, stop)


def local(path: str) -> str:
  """Where the file lies on this machine; one from afar is copied here first, once a process."""
  fs, _ = _filesystem(path)
  return path if _is_local(fs) else fsspec.open_local(f"simplecache::{path}")


def beside(path: str, name: str) -> str:
  """`name` relative to the directory of the file `path`, unless it is absolute or a URL."""
  if "://" in name or os.path.isabs(name):
    return name
  return f"{path.rpartition('/')[0]}/{name}" if "/" in path else name
