"""Raw sources to Samples: which files a source has, how they are cut into blocks, and the reading of a block.

A source is a dict: `kind` (one of KINDS), `path` (a glob; of a file inside the package where `package` names a Debian
package), `licence` (SPDX) and optionally `language` and `domain`, where they are known.
A block is a list of pieces (source, path, start, stop) of one source; what start and stop count depends on the kind.
Two kinds are drawn by a browser (bluelm_jax/pipeline/gui): `pages`, files of HTML or MHTML, and `screens`, whose path is the package.json
beside which npm has installed the UI kits. They take more keys, with defaults in gui/pages.py and gui/screens.py.
"""

import dataclasses
import functools
import glob
import gzip
import io
import json
import os
import pathlib
import posixpath
from typing import Callable, Iterator, Mapping, Sequence

from PIL import Image

from bluelm_jax.data import sample as sample_lib
from bluelm_jax.data.sample import Sample
from bluelm_jax.pipeline.gui import browser
from bluelm_jax.pipeline.gui import pages
from bluelm_jax.pipeline.gui import screens
from bluelm_jax.pipeline.ingest import chat
from bluelm_jax.pipeline.ingest import code
from bluelm_jax.pipeline.ingest import debian
from bluelm_jax.pipeline.ingest import html
from bluelm_jax.pipeline.ingest import man
from bluelm_jax.pipeline.reasoning import generated
from bluelm_jax.pipeline.reasoning import questions

GENERATED = ("reasoning_gym", "tasks")  # their "files" are TASK@LEVEL
QUESTIONS = ("questions", *GENERATED)
DRAWN = {"pages": pages.DEFAULTS, "screens": screens.DEFAULTS}  # kind -> the keys that it takes besides
KINDS = (
    "html", "html_interleaved", "man", "markdown", "text", "pdf", "code", "html_images", "captioned_images", "json", "parquet", "array_record", *QUESTIONS, *DRAWN)
_QUESTION = 400  # bytes that a generated question counts as
_VIEW = 33_000  # bytes that a view of a page counts as: drawing it takes longer than reading it
_IMAGES = (".png", ".jpg", ".jpeg", ".webp")
_ICON = 48  # pixels; a smaller image in a page says less than the text around it
Piece = tuple[str, str, int, int]


def files(source: Mapping, work: pathlib.Path) -> tuple[str, list[str]]:
  """(folder that page names are relative to, sorted paths) of a source; ValueError where there are none."""
  if source["kind"] in GENERATED:
    return "", generated.names(source)
  pattern = source["path"]
  if source.get("package"):
    pattern = str(debian.unpack(source["package"], work) / pattern)
  if os.path.isdir(pattern):
    raise ValueError(f"{pattern} is a folder; give a glob such as {pattern.rstrip('/')}/**/*.html")
  paths = sorted(p for p in glob.glob(pattern, recursive=True) if os.path.isfile(p))
  if source["kind"] in DRAWN:
    browser.executable()
  if source["kind"] == "pages":
    paths = [p for p in paths if not pages.is_part(p)]
  if source["kind"] == "screens":
    for path in paths:
      screens.modules(path)
  if source["kind"] == "captioned_images":
    paths = [p for p in paths if p.lower().endswith(_IMAGES)]
  if source["kind"] == "code":
    paths = [p for p in paths if code.language(p)]
  if not paths:
    raise ValueError(f"no files match {pattern}; check the source's path")
  fixed = pattern.split("*")[0] if "*" in pattern else os.path.dirname(pattern) + "/"
  return fixed[: fixed.rfind("/") + 1], paths


def blocks(sources: Mapping[str, Mapping], block_bytes: int, work: pathlib.Path) -> tuple[list[list[Piece]], dict[str, str]]:
  """Cuts all sources into blocks of about `block_bytes` raw bytes. Returns them and every source's folder."""
  found, folders = [], {}
  for name, source in sorted(sources.items()):
    folders[name], paths = files(source, work)
    size = block_bytes  # every source opens a block of its own
    for path in paths:
      for piece, weight in _pieces(name, source, path, block_bytes):
        if size >= block_bytes:
          found.append([])
          size = 0
        found[-1].append(piece)
        size += weight
  return found, folders


def states(sources: Mapping[str, Mapping], found: list[list[Piece]]) -> list:
  """What changes when the files of blocks do, or the library that makes them."""
  paths = sorted({piece[1] for block in found for piece in block if sources[piece[0]]["kind"] not in GENERATED})
  made = [generated.version()] if any(s["kind"] == "reasoning_gym" for s in sources.values()) else []
  return made + [[path, os.stat(path).st_size, os.stat(path).st_mtime_ns] for path in paths]


def _pieces(name: str, source: Mapping, path: str, block_bytes: int) -> Iterator[tuple[Piece, int]]:
  if source["kind"] in GENERATED:  # start and stop are questions
    count, step = generated.count(source), max(block_bytes // _QUESTION, 1)
    for start in range(0, count, step):
      yield (name, path, start, min(start + step, count)), _QUESTION * min(step, count - start)
    return
  kind, size = _format(source["kind"], path), os.path.getsize(path)
  if kind in DRAWN:
    source = {**DRAWN[kind], **source}
    views = len(source["devices"]) * (source["scrolls"] * len(source["themes"]) if kind == "pages" else 1)
    if kind == "pages":
      yield (name, path, 0, size), views * _VIEW
      return
    step = max(block_bytes // (views * _VIEW), 1)
    for start in range(0, source["count"], step):
      yield (name, path, start, min(start + step, source["count"])), block_bytes
    return
  if kind == "json" and path.endswith(".jsonl"):  # start and stop are bytes
    for start in range(0, max(size, 1), block_bytes):
      yield (name, path, start, min(start + block_bytes, size)), min(block_bytes, size - start)
  elif kind in ("parquet", "array_record"):  # row groups, records
    count = _count(kind, path)
    step = max(count * block_bytes // max(size, 1), 1)
    for start in range(0, count, step):
      stop = min(start + step, count)
      yield (name, path, start, stop), size * (stop - start) // count
  else:
    yield (name, path, 0, size), size


def _format(kind: str, path: str) -> str:
  """How a file is read: questions lie in two formats."""
  return ("parquet" if path.endswith(".parquet") else "json") if kind == "questions" else kind


def _count(kind: str, path: str) -> int:
  try:
    if kind == "parquet":
      import pyarrow.parquet as pq  # a second's import, for one kind

      return pq.ParquetFile(path).num_row_groups
    return _reader(path).num_records()
  except (RuntimeError, ValueError, OSError) as e:
    raise ValueError(f"{path} is not readable as {kind}; check the source's kind") from e


def _reader(path: str):
  from array_record.python import array_record_module  # slow import

  return array_record_module.ArrayRecordReader(path)


def block(pieces: Sequence[Piece], source: Mapping, folder: str) -> Iterator[Sample | ValueError]:
  """Samples of a block, whose pieces are all of this source: one browser draws what is to be drawn. See `samples`."""
  name = pieces[0][0]
  if source["kind"] == "pages":
    yield from _labelled(pages.samples([path for _, path, *_ in pieces], name, source, folder), source)
  elif source["kind"] == "screens":
    for _, path, start, stop in pieces:
      yield from _labelled(screens.samples(path, name, source, start, stop), source)
  else:
    for piece in pieces:
      yield from samples(piece, source, folder)


def samples(piece: Piece, source: Mapping, folder: str) -> Iterator[Sample | ValueError]:
  """Samples of a piece, labelled as the source says; what cannot be read comes as the ValueError that says why.

  A sample's source is "NAME: PAGE", or "NAME: FILE#ROW" where a file has many; samples of our own shards keep theirs.
  """
  yield from _labelled(_samples(piece, source, folder), source)


def _labelled(items: Iterator[Sample | ValueError], source: Mapping) -> Iterator[Sample | ValueError]:
  labels = {key: source[key] for key in ("language", "domain") if source.get(key)}
  for item in items:
    yield dataclasses.replace(item, meta={**item.meta, **labels}) if labels and isinstance(item, Sample) else item


def _samples(piece: Piece, source: Mapping, folder: str) -> Iterator[Sample | ValueError]:
  name, path, start, stop = piece
  page = path.removeprefix(folder)
  try:
    if source["kind"] in GENERATED:
      yield from generated.samples(source, page, start, stop, name)
    elif source["kind"] in ("json", "parquet", "array_record", "questions"):
      make = functools.partial(questions.sample, check=source.get("check", "")) if source["kind"] == "questions" else chat.sample
      yield from _rows(path, _format(source["kind"], path), start, stop, f"{name}: {page}", source["licence"], make)
    elif source["kind"] in ("html_images", "captioned_images"):
      yield from _images(path, source["kind"], f"{name}: {page}", source["licence"])
    elif source["kind"] == "code":
      meta = {"language": "code", "domain": "computing", "code": code.language(path)}
      yield Sample(f"{name}: {page}", source["licence"], _text(path), meta=meta)
    elif source["kind"] in ("html", "html_interleaved"):
      yield _page(path, page, source["kind"], f"{name}: {page}", source["licence"])
    else:
      text = "\n".join(_paragraphs(path, source["kind"]))
      yield Sample(f"{name}: {page}", source["licence"], text)
  except (ValueError, OSError, EOFError) as e:
    yield ValueError(f"{path}: {e}")


def _text(path: str) -> str:
  data = pathlib.Path(path).read_bytes()
  data = gzip.decompress(data) if path.endswith(".gz") else data
  try:
    return data.decode("utf-8")
  except UnicodeDecodeError:
    return data.decode("gb18030", errors="replace")  # the other encoding of Chinese text


def _page(path: str, page: str, kind: str, source: str, licence: str) -> Sample:
  """A page of HTML; meta names the page that follows, if it says so."""
  text = _text(path)
  following = html.following(text).partition("#")[0]
  meta = {"next": posixpath.normpath(posixpath.join(posixpath.dirname(page), following))} if following else {}
  if kind == "html":
    return Sample(source, licence, "\n".join(html.paragraphs(text)), meta=meta)
  text, images = html.interleaved(text, lambda where: _figure(pathlib.Path(path).parent / where))
  return Sample(source, licence, text, images=tuple(images), meta=meta)


def _figure(path: pathlib.Path) -> bytes | None:
  """An image of a page, unless it is an icon, absent or damaged."""
  try:
    data = path.read_bytes() if path.suffix.lower() in _IMAGES else b""
    size = Image.open(io.BytesIO(data)).size
  except (OSError, ValueError, Image.DecompressionBombError):
    return None
  return data if min(size) >= _ICON else None


def _paragraphs(path: str, kind: str) -> list[str]:
  if kind == "man":
    return man.paragraphs(_text(path))
  if kind == "markdown":
    from bluelm_jax.pipeline.ingest import markdown

    return markdown.paragraphs(_text(path))
  if kind == "pdf":
    from bluelm_jax.pipeline.ingest import pdf

    return pdf.paragraphs(pathlib.Path(path).read_bytes())
  return _text(path).splitlines()


def _images(path: str, kind: str, source: str, licence: str) -> Iterator[Sample]:
  if kind == "captioned_images":
    yield Sample(source, licence, _text(os.path.splitext(path)[0] + ".txt").strip(), images=(pathlib.Path(path).read_bytes(),))
    return
  for where, alt in html.images(_text(path)):
    image = pathlib.Path(path).parent / where
    if image.is_file() and image.suffix.lower() in _IMAGES:
      yield Sample(f"{source} {where}", licence, alt, images=(image.read_bytes(),))


def _rows(path: str, kind: str, start: int, stop: int, source: str, licence: str, make: Callable) -> Iterator[Sample | ValueError]:
  if kind == "array_record":
    for i, record in enumerate(_reader(path).read(start, stop)):
      try:
        yield sample_lib.decode(record)
      except ValueError as e:
        yield ValueError(f"{path}, record {start + i}: {e}")
    return
  for where, row in _parquet(path, start, stop) if kind == "parquet" else _json(path, start, stop):
    try:
      yield make(json.loads(row) if isinstance(row, bytes) else row, f"{source}#{where}", licence, os.path.dirname(path))
    except (ValueError, RecursionError) as e:
      yield ValueError(f"{path}#{where}: {e}")


def _parquet(path: str, start: int, stop: int):
  import pyarrow.parquet as pq

  table = pq.ParquetFile(path)
  for group in range(start, stop):
    for i, row in enumerate(table.read_row_group(group).to_pylist()):
      yield f"{group}.{i}", row


def _json(path: str, start: int, stop: int):
  """(byte, line) of the lines that begin in [start, stop), or (number, item) of a JSON list."""
  if not path.endswith(".jsonl"):
    rows = json.loads(_text(path))
    yield from ((str(i), row) for i, row in enumerate(rows if isinstance(rows, list) else [rows]))
    return
  with open(path, "rb") as f:
    if start:
      f.seek(start - 1)
      f.readline()
    while (at := f.tell()) < stop:
      line = f.readline()
      if line.strip():
        yield str(at), line
