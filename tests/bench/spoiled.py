"""Sources of every file format in which one record in fifty cannot be used, each in one of many ways.

A good record holds "NAME:NUMBER." in its text, so that a batch tells which records it has.
"""

import base64
import io
import json
import pathlib
import tarfile
from typing import Callable, NamedTuple

from array_record.python import array_record_module
import msgpack
import numpy as np
from PIL import Image
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet

from bluelm_jax.data import sample as sample_lib
from bluelm_jax.data import sources

EVERY = 50
_PICTURES = 120
_LOOKS = (
    ("PNG", "RGB"), ("JPEG", "RGB"), ("WEBP", "RGB"), ("PNG", "RGBA"), ("PNG", "P"), ("PNG", "1"), ("PNG", "LA"), ("JPEG", "CMYK"), ("JPEG", "L"),
    ("TIFF", "RGB"), ("BMP", "RGB"), ("AVIF", "RGB"))


class Spoiled(NamedTuple):
  """A source as a stage's config names it, its good records' numbers, and (file, index) -> (way, kind) of its bad ones."""

  config: dict
  good: set[int]
  bad: dict[tuple[str, int], tuple[str, str]]


class _Stuff:
  """Words and pictures of the shipped assets, and pictures that nobody can show."""

  def __init__(self, folder: pathlib.Path):
    self.rng = np.random.default_rng(0)
    prose = sources.Records("assets/text-train.array_record")
    self._prose = "".join(prose[i].text[:600] for i in range(0, len(prose), 10)).replace("<image>", "")
    self.screens = [s for i in range(200) for s in [sources.Records("assets/screens-train.array_record")[i]]]
    shots = [Image.open(io.BytesIO(s.images[0])).convert("RGB") for s in self.screens[:_PICTURES]]
    self.pictures = [self._picture(shot, i) for i, shot in enumerate(shots)]
    bomb = bytearray(_encoded(shots[0].resize((40, 40)), "PNG"))
    bomb[16:24] = (60_000).to_bytes(4, "big") * 2  # what its header says of its sides
    self.spoiled = {
        "PNG cut": _encoded(shots[1], "PNG")[:-2000], "JPEG cut": _encoded(shots[2], "JPEG")[:-1500], "WebP cut": _encoded(shots[3], "WEBP")[:900],
        "bomb": bytes(bomb), "1 x 1": _encoded(shots[4].resize((1, 1)), "PNG"), "an icon file": _encoded(shots[5].resize((32, 32)), "ICO"),
        "32-bit pixels": _encoded(shots[6].convert("F"), "TIFF"), "no picture": b"GIF89a and nothing", "nothing": b""}
    (folder / "pictures").mkdir()
    for i, data in enumerate(self.pictures):
      (folder / f"pictures/{i}.img").write_bytes(data)
    for name, data in self.spoiled.items():
      (folder / f"pictures/{name}").write_bytes(data)

  def words(self) -> str:
    at = int(self.rng.integers(len(self._prose) - 100))
    return self._prose[at : at + int(self.rng.integers(20, 100))]

  def picture(self) -> bytes:
    return self.pictures[self.rng.integers(_PICTURES)]

  def _picture(self, shot: Image.Image, i: int) -> bytes:
    """A part of a screen, in one of many formats and modes."""
    w, h = self.rng.integers(20, 200, 2).tolist()
    part = shot.crop((0, 0, w, h))
    kind, mode = _LOOKS[i % len(_LOOKS)]
    if i % 15 == 14:
      return _encoded(part, "GIF", save_all=True, append_images=[shot.crop((9, 9, w, h))])
    return _encoded(part.convert(mode), kind)


def _encoded(image: Image.Image, kind: str, **options) -> bytes:
  out = io.BytesIO()
  image.save(out, kind, **options)
  return out.getvalue()


def _ways(count: int, ways: dict) -> list[str | None]:
  """By record, the way in which it is bad, or None."""
  names = list(ways)
  return [names[i // EVERY % len(names)] if i % EVERY == EVERY // 2 else None for i in range(count)]


def _spoiled(kind, paths, ways: dict[str, tuple[str, Callable]], said, file, **rest) -> Spoiled:
  """`file` is the path as expanded, or two of equal numbers of records."""
  size = -(-len(said) // len(file))
  bad = {(str(file[i // size]), i % size): (way, ways[way][0]) for i, way in enumerate(said) if way}
  return Spoiled({"kind": kind, "path": str(paths), "share": 1.0, **rest}, {i for i, way in enumerate(said) if not way}, bad)


def _talk(mark: str, words: str, shown: bool) -> list[dict]:
  content = [{"type": "image"}] * shown + [{"type": "text", "text": f"{mark} {words}"}]
  return [{"role": "user", "content": content}, {"role": "assistant", "content": words[:10] or "-"}]


def _halves(folder, name, suffix):
  return [folder / name / f"{i}{suffix}" for i in range(2)]


def _write_shards(files, records: list[bytes]):
  files[0].parent.mkdir()
  size = -(-len(records) // len(files))
  for i, file in enumerate(files):
    writer = array_record_module.ArrayRecordWriter(str(file), "group_size:1")
    for record in records[i * size : (i + 1) * size]:
      writer.write(record)
    writer.close()


def _shards(folder, name, count, stuff) -> Spoiled:
  """Conversations in ArrayRecord shards, half of them with a picture."""
  packed = lambda s, **changes: msgpack.packb({**vars(s), **changes})
  turned = lambda s, at, **changes: packed(s, messages=[{**m, **changes} if i == at else m for i, m in enumerate(s.messages)])
  ways = {
      "record cut": ("record", lambda s: packed(s)[:-20]),
      "a list": ("record", lambda s: msgpack.packb([1, 2])),
      "text is a number": ("record", lambda s: packed(s, text=3)),
      "another field": ("record", lambda s: packed(s, language="en")),
      "a picture too few": ("conversation", lambda s: packed(s, images=s.images[1:], messages=_talk("x", "y", True))),
      "role unknown": ("conversation", lambda s: turned(s, 0, role="robot")),
      "no answer": ("conversation", lambda s: packed(s, messages=s.messages[:1])),
      "answer is a number": ("conversation", lambda s: turned(s, 1, content=3)),
      **{w: ("image", lambda s, w=w: packed(s, images=[stuff.spoiled[w]], messages=_talk("x", "y", True))) for w in ("PNG cut", "32-bit pixels")}}
  said, records = _ways(count, ways), []
  for i, way in enumerate(said):
    shown = (stuff.picture(),) * (i % 2)
    good = sample_lib.Sample("soak", "MIT", messages=tuple(_talk(f"{name}:{i}.", stuff.words(), bool(shown))), images=shown)
    records.append(ways[way][1](good) if way else sample_lib.encode(good))
  files = _halves(folder, name, ".array_record")
  _write_shards(files, records)
  return _spoiled("conversations", folder / name / "*.array_record", ways, said, files)


def _screens(folder, name, count, stuff) -> Spoiled:
  """Screens that are asked for their captions."""
  ways = {
      "no elements": ("record", lambda s: _changed(s, elements=[])),
      "role of an element unknown": ("record", lambda s: _changed(s, elements=[{**s.meta["elements"][0], "role": "door"}])),
      "a box of three sides": ("record", lambda s: _changed(s, elements=[{**s.meta["elements"][0], "box": [0, 0, 1]}])),
      "no caption": ("record", lambda s: _changed(s, caption=None)),
      "WebP cut": ("image", lambda s: sample_lib.encode(sample_lib.Sample(s.source, s.licence, images=(stuff.spoiled["WebP cut"],), meta=s.meta)))}
  said, records = _ways(count, ways), []
  for i, way in enumerate(said):
    screen = stuff.screens[i % len(stuff.screens)]
    good = sample_lib.Sample(screen.source, screen.licence, images=screen.images, meta={**screen.meta, "caption": f"{name}:{i}. {stuff.words()}"})
    records.append(ways[way][1](good) if way else sample_lib.encode(good))
  files = _halves(folder, name, ".array_record")
  _write_shards(files, records)
  return _spoiled("screens", folder / name, ways, said, files, tasks={"caption": 1.0}, turns=1)


def _changed(screen, **meta) -> bytes:
  return sample_lib.encode(sample_lib.Sample(screen.source, screen.licence, images=screen.images, meta={**screen.meta, **meta}))


def _lines(folder, name, count, stuff) -> Spoiled:
  """LLaVA's form, an object a line, with paths of pictures."""
  dump = lambda r, **changes: json.dumps({**r, **changes}, ensure_ascii=False).encode()
  said_by = lambda r, n, **changes: dump(r, conversations=[{**t, **changes} if i == n else t for i, t in enumerate(r["conversations"])])
  ways = {
      "line cut": ("record", lambda r: dump(r)[:-30]),
      "not UTF-8": ("record", lambda r: dump(r)[:-3] + b"\xff\xfe\"}"),
      "half a character": ("record", lambda r: dump(r)[:-1] + b', "id": "\\ud83d"}'),
      "brackets without end": ("record", lambda r: b"[" * 50_000),
      "another schema": ("record", lambda r: dump({"question": "a", "answer": "b"})),
      "speaker unknown": ("conversation", lambda r: said_by(r, 0, **{"from": "bing"})),
      "a picture too few": ("conversation", lambda r: said_by(r, 0, value="<image><image>two")),
      "no file": ("image", lambda r: dump(r, image="pictures/none.png")),
      "a path of 4000": ("image", lambda r: dump(r, image="x" * 4000)),
      "afar": ("image", lambda r: dump(r, image="ftp://localhost/x.png")),
      **{w: ("image", lambda r, w=w: dump(r, image=f"pictures/{w}")) for w in ("JPEG cut", "bomb", "1 x 1", "an icon file", "nothing")}}
  said, lines = _ways(count, ways), []
  for i, way in enumerate(said):
    turns = [{"from": "human", "value": f"<image>\n{name}:{i}. {stuff.words()}"}, {"from": "gpt", "value": "Yes"}]
    good = {"image": f"pictures/{stuff.rng.integers(_PICTURES)}.img", "conversations": turns}
    lines.append(ways[way][1](good) if way else dump(good))
  path = folder / f"{name}.jsonl"
  path.write_bytes(b"\n".join(lines))
  return _spoiled("conversations", path, ways, said, [path])


def _parquet(folder, name, count, stuff) -> Spoiled:
  """Documents, a tenth of them with a picture; parts of a directory."""
  ways = {
      "no text": ("record", lambda r: {**r, "text": ""}),
      "null": ("record", lambda r: {"text": None, "image": None}),
      "no picture": ("image", lambda r: {**r, "image": stuff.spoiled["no picture"]}),
      "a picture too few": ("document", lambda r: {"text": "a <image> b <image>", "image": stuff.pictures[0]})}
  said = _ways(count, ways)
  rows = []
  for i, way in enumerate(said):
    good = {"text": f"{name}:{i}. {stuff.words()}", "image": stuff.picture() if i % 10 == 0 else None}
    rows.append(ways[way][1](good) if way else good)
  files = _halves(folder, name, ".parquet")
  files[0].parent.mkdir()
  size = -(-count // 2)
  for i, file in enumerate(files):
    pa.parquet.write_table(pa.Table.from_pylist(rows[i * size : (i + 1) * size]), file, row_group_size=100)
  return _spoiled("documents", folder / name, ways, said, files, window=500)


def _tar(folder, name, count, stuff) -> Spoiled:
  """A WebDataset of conversations with pictures."""
  ways = {
      "a member of another kind": ("record", lambda m: {**m, "mp4": b"x"}),
      "not UTF-8": ("record", lambda m: {"txt": b"\xff\xfe"}),
      "no JSON": ("record", lambda m: {**m, "json": b"{"}),
      "a list": ("record", lambda m: {**m, "json": b"[1]"}),
      "empty conversation": ("conversation", lambda m: {"json": b'{"messages": []}'}),
      "picture absent": ("conversation", lambda m: {"json": m["json"]}),
      "WebP cut": ("image", lambda m: {**m, "png": stuff.spoiled["WebP cut"]})}
  said, path = _ways(count, ways), folder / f"{name}.tar"
  with tarfile.open(path, "w") as tar:
    for i, way in enumerate(said):
      good = {"json": json.dumps({"messages": _talk(f"{name}:{i}.", stuff.words(), True)}).encode(), "png": stuff.picture()}
      for suffix, data in (ways[way][1](good) if way else good).items():
        member = tarfile.TarInfo(f"{i:06}.{suffix}")
        member.size = len(data)
        tar.addfile(member, io.BytesIO(data))
  return _spoiled("conversations", path, ways, said, [path])


def _huggingface(folder, name, count, stuff) -> Spoiled:
  """Interleaved documents in a directory that save_to_disk would have written."""
  ways = {
      "they do not alternate": ("document", lambda r: {**r, "images": r["images"][:1]}),
      "a mark in a text": ("document", lambda r: {"texts": ["a <image>", None], "images": r["images"]}),
      "null": ("record", lambda r: {**r, "texts": None}),
      "PNG cut": ("image", lambda r: {**r, "images": [None, {"bytes": stuff.spoiled["PNG cut"], "path": None}]}),
      "no bytes": ("image", lambda r: {**r, "images": [None, {"bytes": None, "path": None}]})}
  said, rows = _ways(count, ways), []
  for i, way in enumerate(said):
    good = {"texts": [f"{name}:{i}. {stuff.words()}", None], "images": [None, {"bytes": stuff.picture(), "path": None}]}
    rows.append(ways[way][1](good) if way else good)
  (folder / name).mkdir()
  table, files = pa.Table.from_pylist(rows), _halves(folder, name, ".arrow")
  size = -(-count // 2)
  for i, file in enumerate(files):
    with pa.OSFile(str(file), "wb") as f, pa.ipc.new_stream(f, table.schema) as out:
      out.write_table(table.slice(i * size, size), max_chunksize=100)
  (folder / name / "state.json").write_text(json.dumps({"_data_files": [{"filename": f.name} for f in files]}))
  return _spoiled("documents", folder / name, ways, said, files, window=500)


def _list(folder, name, count, stuff) -> Spoiled:
  """Conversations in one JSON list, a third with a picture inside."""
  ways = {
      "a word": ("record", lambda r: "x"),
      "tools": ("record", lambda r: {**r, "tools": []}),
      "content is a number": ("conversation", lambda r: {"messages": [{"role": "user", "content": 3}, r["messages"][1]]}),
      "a picture of the assistant": ("conversation", lambda r: {"messages": [r["messages"][0], {"role": "assistant", "content": [{"type": "image"}]}]}),
      "system alone": ("conversation", lambda r: {"messages": [{"role": "system", "content": "x"}]}),
      "no base64": ("image", lambda r: {"messages": r["messages"], "image": "data:image/png;base64,***"})}
  said, rows = _ways(count, ways), []
  for i, way in enumerate(said):
    picture = {} if i % 3 else {"image": "data:;base64," + base64.b64encode(stuff.picture()).decode()}
    good = {"messages": _talk(f"{name}:{i}.", stuff.words(), bool(picture)), **picture}
    rows.append(ways[way][1](good) if way else good)
  path = folder / f"{name}.json"
  path.write_text(json.dumps(rows))
  return _spoiled("conversations", path, ways, said, [path])


KINDS = {"shots": _screens, "talks": _shards, "llava": _lines, "prose": _parquet, "web": _tar, "mixed": _huggingface, "chats": _list}


def write(folder: pathlib.Path, count: int) -> dict[str, Spoiled]:
  """Sources of `count` records each, under their names."""
  stuff = _Stuff(folder)
  return {name: make(folder, name, count, stuff) for name, make in KINDS.items()}
