"""The files of a checkpoint with sizes and CRC-32 checksums, so that a damaged one is found before it is used."""

import concurrent.futures
import json
import pathlib
import zlib

FILE_NAME = "manifest.json"
_LATER = ("_CHECKPOINT_METADATA", "commit_success.txt")  # orbax writes these when it commits; no state is in them
_CHUNK = 16 << 20  # bytes


def write(directory) -> None:
  """Lists the files under `directory`."""
  directory = pathlib.Path(directory)
  files = sorted(p for p in directory.rglob("*") if p.is_file() and p.name not in _LATER)
  with concurrent.futures.ThreadPoolExecutor() as pool:  # zlib lets go of the interpreter
    sums = pool.map(checksum, files)
    listed = [{"path": p.relative_to(directory).as_posix(), "size": p.stat().st_size, "crc32": s} for p, s in zip(files, sums)]
  (directory / FILE_NAME).write_text(json.dumps({"files": listed}, indent=1))


def problem(directory, part: str = "") -> str | None:
  """What is wrong with the files under `directory`; None if nothing is, or no list was written by an earlier version.

  Args:
    part: a folder of it, whose files alone are looked at.
  """
  directory = pathlib.Path(directory)
  try:
    listed = [(directory / f["path"], f["size"], f["crc32"]) for f in json.loads((directory / FILE_NAME).read_text())["files"] if f["path"].startswith(part)]
  except FileNotFoundError:
    return None
  except (ValueError, KeyError, TypeError):
    return f"{FILE_NAME} is damaged"
  for path, size, _ in listed:
    found = path.stat().st_size if path.is_file() else None
    if found != size:
      return f"{path.relative_to(directory)} " + ("is missing" if found is None else f"has {found} bytes, not {size}")
  with concurrent.futures.ThreadPoolExecutor() as pool:
    for (path, _, listed_sum), found in zip(listed, pool.map(checksum, [p for p, _, _ in listed])):
      if found != listed_sum:
        return f"{path.relative_to(directory)} does not have its checksum"
  return None


def checksum(path: pathlib.Path) -> int:
  """CRC-32 of a file."""
  found = 0
  with open(path, "rb") as f:
    while chunk := f.read(_CHUNK):
      found = zlib.crc32(chunk, found)
  return found
