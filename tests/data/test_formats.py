"""Every file format gives the same records, from disk and through fsspec, by index."""

import base64
import gzip
import io
import json
import pickle
import sys
import tarfile

import fsspec
import numpy as np
from PIL import Image
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet
import pytest

from bluelm_jax.data import files
from bluelm_jax.data import formats
from bluelm_jax.data import sample as sample_lib
from bluelm_jax.data import sources

TEXTS = [f"document {i} 文" * (1 + i % 5) for i in range(23)]


def picture(value=7, kind="PNG", size=(9, 5)):
  out = io.BytesIO()
  Image.fromarray(np.full((*size, 3), value, np.uint8)).save(out, kind)
  return out.getvalue()


def put(path, data: bytes):
  with fsspec.open(str(path), "wb", auto_mkdir=True) as f:
    f.write(data)
  return str(path)


def tar(members) -> bytes:
  out = io.BytesIO()
  with tarfile.open(fileobj=out, mode="w") as file:
    for name, data in members:
      info = tarfile.TarInfo(name)
      info.size = len(data)
      file.addfile(info, io.BytesIO(data))
  return out.getvalue()


def arrow(rows) -> bytes:
  table, out = pa.Table.from_pylist(rows), io.BytesIO()
  with pa.ipc.new_stream(out, table.schema) as writer:
    writer.write_table(table, max_chunksize=4)
  return out.getvalue()


def parquet(rows, group=4) -> bytes:
  out = io.BytesIO()
  pa.parquet.write_table(pa.Table.from_pylist(rows), out, row_group_size=group)
  return out.getvalue()


TWO = tar([("a.txt", b"x" * 2000), ("b.txt", b"x" * 2000)])
ROWS = [{"text": t} for t in TEXTS]


def written(kind, root):
  """TEXTS as a file of a format under a local or remote root."""
  if kind == ".array_record":
    sample_lib.write_shard(f"{root}.local", [sample_lib.Sample("s", "MIT", t) for t in TEXTS])
    with open(f"{root}.local", "rb") as f:
      return put(f"{root}/x{kind}", f.read())
  data = {
      ".jsonl": lambda: "\n\n".join(json.dumps(r, ensure_ascii=False) for r in ROWS).encode() + b"\r\n\n", ".json": lambda: json.dumps(ROWS).encode(),
      ".parquet": lambda: parquet(ROWS), ".tar": lambda: tar([(f"d/{i:03}.txt", t.encode()) for i, t in enumerate(TEXTS)]), ".arrow": lambda: arrow(ROWS)}
  return put(f"{root}/x{kind}", data[kind]())


_name = lambda value: value if isinstance(value, str) else "data"  # of a parameter; bytes may hold the time
KINDS = (".array_record", ".jsonl", ".json", ".parquet", ".tar", ".arrow")


@pytest.mark.parametrize("kind", KINDS)
def test_records_by_index(kind, tmp_path):
  records = sources.Records(written(kind, tmp_path))
  assert len(records) == len(TEXTS) and records.locate(22) == (0, 22)
  order = np.random.default_rng(0).permutation(len(TEXTS)).tolist()
  travelled = pickle.loads(pickle.dumps(records))  # as it goes to a reader process
  for r in (records, travelled):
    assert [r[i].text.removeprefix("<image>") for i in order] == [TEXTS[i] for i in order]


@pytest.mark.parametrize("kind", KINDS)
def test_what_lies_afar_is_read_alike(kind, tmp_path):
  """fsspec's memory:// stands for gs://."""
  there = written(kind, tmp_path)
  url = put(f"memory://bucket{tmp_path}/x{kind}", open(there, "rb").read())
  assert [s.text for s in map(sources.Records(url).__getitem__, range(23))] == TEXTS


def test_characters_beyond_16_bits_may_be_escaped(tmp_path):
  for name, dump in (("x.jsonl", json.dumps), ("x.json", lambda r: json.dumps([r]))):
    assert sources.Records(put(tmp_path / name, dump({"text": "a😀b"}).encode()))[0].text == "a😀b"


def test_a_line_is_read_alone(tmp_path, monkeypatch):
  """After the one scan, a record costs its own bytes, also where chunks of the scan end within lines."""
  monkeypatch.setattr(formats, "_CHUNK", 7)
  found = formats.open_file(written(".jsonl", tmp_path))
  monkeypatch.setattr(files, "open_file", None)
  read, real = [], files.read
  monkeypatch.setattr(files, "read", lambda *a: read.append(a) or real(*a))
  assert [found[i]["text"] for i in (5, 0, 22)] == [TEXTS[5], TEXTS[0], TEXTS[22]]
  assert len(read) == 3 and all(stop - start < 150 for _, start, stop in read)


def test_a_row_group_is_read_once_for_its_rows(tmp_path, monkeypatch):
  found, groups, real = formats.open_file(written(".parquet", tmp_path)), [], formats._parquet
  formats._row_group.cache_clear()
  monkeypatch.setattr(formats, "_parquet", lambda p: groups.append(p) or real(p))
  assert [found[i]["text"] for i in (3, 2, 1, 0, 4)] == [TEXTS[i] for i in (3, 2, 1, 0, 4)] and len(groups) == 2


def test_tar_members_with_one_name_are_one_record(tmp_path):
  red, blue = picture(200), picture(20, "JPEG")
  talk = {"conversations": [{"from": "human", "value": "<image>\nand <image>?"}, {"from": "gpt", "value": "Two"}], "image": ["1.png", "0.jpg"]}
  members = [
      ("a/7.json", json.dumps(talk).encode()), ("a/7.1.png", red), ("a/7.0.jpg", blue),
      ("a/8.txt", "说明".encode()), ("a/8.PNG", red), ("b/8.txt", b"other"), ("./.hidden", b"x")]
  records = sources.Records(put(tmp_path / "x.tar", tar(members)))
  both, caption, other = (records[i] for i in range(3))
  assert len(records) == 3 and both.images == (blue, red) and [p["type"] for p in both.messages[0]["content"]] == ["image", "text", "image", "text"]
  assert (caption.text, caption.images, other.text) == ("<image>说明", (red,), "other")


def save_to_disk(path, split=""):
  """The files of a HuggingFace data set of two Arrow files, in their own order."""
  names = ("data-00001-of-00002.arrow", "data-00000-of-00002.arrow")
  for name, rows in zip(names, (ROWS[:9], ROWS[9:])):
    put(path / split / name, arrow(rows))
  put(path / split / "state.json", json.dumps({"_data_files": [{"filename": n} for n in names]}).encode())
  put(path / split / "dataset_info.json", b"{}")


def test_a_huggingface_data_set(tmp_path):
  save_to_disk(tmp_path, "train")
  records = sources.Records(str(tmp_path / "train"))
  assert [records[i].text for i in range(23)] == TEXTS and records.locate(9) == (1, 0)
  put(tmp_path / "dataset_dict.json", json.dumps({"splits": ["train", "test"]}).encode())
  with pytest.raises(ValueError, match="holds the splits train, test; name one, as .*/train"):
    sources.Records(str(tmp_path))


def test_files_globs_and_directories(tmp_path):
  for i, rows in enumerate((ROWS[:4], ROWS[4:10], ROWS[10:])):
    put(tmp_path / f"part/{i}.parquet", parquet(rows))
  put(tmp_path / "part/README.md", b"x")
  want = [str(tmp_path / f"part/{i}.parquet") for i in range(3)]
  assert files.expand(str(tmp_path / "part")) == files.expand(str(tmp_path / "p*/*.parquet")) == files.expand(want) == want
  records = sources.Records([want[2], str(tmp_path / "part/[01].parquet")])
  assert [records[i].text for i in range(23)] == TEXTS[10:] + TEXTS[:10] and records.locate(13) == (1, 0)
  put(tmp_path / "odd [1].jsonl", b'{"text": "x"}')
  assert len(sources.Records(str(tmp_path / "odd [1].jsonl"))) == 1  # a name, no glob
  put(tmp_path / "part/x.jsonl", b"")
  for path, words in ((tmp_path / "part", "holds .jsonl and .parquet files; name those you mean"), (tmp_path / "no*", "no data at"), (tmp_path, "holds .jsonl and"),
                      ([want[0], want[0]], "is named twice"), ([], "no data file is named"), ("nowhere://x/y.jsonl", "cannot be reached")):
    with pytest.raises(ValueError, match=words) as error:
      files.expand(path if isinstance(path, list) else str(path))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name,data,words", [
    ("x.csv", b"a,b", "of no known kind; use .array_record, .jsonl, .json, .parquet, .tar, .arrow"), ("x.jsonl", b"\n\r\n", "holds no records"),
    ("x.json", b'{"text": 1}', "is no list of records"), ("x.json", b"[" * 100_000, "is no JSON (maximum recursion"), ("x.json", b'{"text": 1}\n{"text": 2}', "call it .jsonl"), ("x.json", b"[]", "holds no records"),
    ("x.parquet", b"hello", "is no Parquet file"), ("x.parquet", parquet(ROWS)[:-3], "is no Parquet file"), ("x.arrow", b"hello", "is no Arrow file"),
    ("x.arrow", b"", "is no Arrow file"), ("x.tar", b"hello" * 300, "is no tar file"), ("x.tar", gzip.compress(tar([("a.txt", b"x")])), "write it again, uncompressed"),
    ("x.tar", TWO[:3500], "is no tar file"), ("x.tar", TWO[:2700], "is no tar file"), ("x.tar", TWO[:2600] + b"x" * 60 + TWO[2660:], "is no tar file"), ("x.array_record", b"hello" * 20_000, "is no ArrayRecord shard")], ids=_name)
def test_files_of_another_format(name, data, words, tmp_path):
  path = put(tmp_path / name, data)
  with pytest.raises(ValueError) as error:
    formats.open_file(path)
  assert words in str(error.value) and path in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("name,data,words", [
    ("x.jsonl", b'{"text": "good"}\n{"text": "bad"\n', "record 1 is no JSON object"), ("x.jsonl", b'{"text": "good"}\n[1, 2]\n', "record 1 is no JSON object (is a list; a record is an object)"),
    ("x.jsonl", b'{"text": "good"}\n\xff\xfe"\n', "record 1 is no JSON object"), ("x.jsonl", b'{"text": "good"}\n' + b"[" * 100_000, "record 1 is no JSON object (maximum recursion"),
    ("x.jsonl", b'{"text": "good"}\n{"text": "a\\uDc01"}', "record 1 is no JSON object ('utf-8' codec can't encode"), ("x.json", b'[{"text": "good"}, {"text": "a\\ud83d"}]', "record 1 'utf-8' codec can't encode"),
    ("x.json", b'[{"text": "good"}, "x"]', "record 1 is a str"),
    ("x.tar", tar([("a.txt", b"good"), ("b.txt", b"\xff\xfe")]), "record 1 "), ("x.tar", tar([("a.txt", b"good"), ("b.mp4", b"x")]), "record 1 has a member of kind 'mp4'")], ids=_name)
def test_a_damaged_record_is_named(name, data, words, tmp_path):
  records = sources.Records(put(tmp_path / name, data))
  assert records[0].text == "good"
  with pytest.raises(ValueError) as error:
    records[1]
  assert f"{tmp_path}/{name}: {words}" in str(error.value) and "\n" not in str(error.value) and error.value.kind == "record"


def test_a_damaged_row_group(tmp_path):
  data = bytearray(parquet(ROWS))
  data[4:60] = bytes(range(56))
  records = sources.Records(put(tmp_path / "x.parquet", bytes(data)))
  with pytest.raises(ValueError, match="record 2 lies in the damaged row group 0"):
    records[2]
  assert records[20].text == TEXTS[20]


def test_a_damaged_batch(tmp_path):
  """Arrow files are mapped: an offset that leads out of its buffer would end the process that follows it."""
  data, stops = arrow(ROWS), np.cumsum([0, *(len(t.encode()) for t in TEXTS[:4])]).astype(np.int32)
  assert data.count(stops.tobytes()) == 1
  wild = stops.copy()
  wild[2] = 2**31 - 1
  records = sources.Records(put(tmp_path / "x.arrow", data.replace(stops.tobytes(), wild.tobytes())))
  with pytest.raises(ValueError, match="record 2 lies in the damaged batch 0; save the data set again"):
    records[2]
  assert [records[i].text for i in range(4, 23)] == TEXTS[4:]


def test_pyarrow_is_asked_for_by_name(tmp_path, monkeypatch):
  path = written(".parquet", tmp_path)
  monkeypatch.setitem(sys.modules, "pyarrow.ipc", None)
  with pytest.raises(ValueError, match=r"pip install 'bluelm_jax\[formats\]'"):
    formats.open_file(path)


@pytest.mark.parametrize("kind", [".jsonl", ".parquet", ".tar", ".arrow"])
def test_images_of_every_format(kind, tmp_path):
  image, talk = picture(), [{"role": "user", "content": "<image>What?"}, {"role": "assistant", "content": "It"}]
  put(tmp_path / "pictures/a.png", image)
  record = {"messages": talk}
  data = {
      ".jsonl": lambda: json.dumps({**record, "images": ["pictures/a.png"]}).encode(), ".tar": lambda: tar([("a.json", json.dumps(record).encode()), ("a.png", image)]),
      ".parquet": lambda: parquet([{**record, "images": [{"bytes": image, "path": None}]}]), ".arrow": lambda: arrow([{**record, "image": image}])}
  found = sources.Records(put(tmp_path / f"x{kind}", data[kind]()))[0]
  assert found.images == (image,) and found.messages == ({"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]}, talk[1])


def test_images_beside_a_file_afar():
  put("memory://far/pictures/a.png", picture())
  put("memory://far/x.jsonl", json.dumps({"text": "a <image> b", "images": ["pictures/a.png"]}).encode())
  put("memory://far/y.jsonl", json.dumps({"text": "a <image> b", "images": ["data:image/png;base64," + base64.b64encode(picture(9)).decode()]}).encode())
  assert [sources.Records(f"memory://far/{n}.jsonl")[0].images for n in "xy"] == [(picture(),), (picture(9),)]
