"""Long samples: what is a unit, its order, what is kept whole and what is joined; and a data set of them, read by the loader."""

import json

import cv2
import numpy as np
import pytest

pytest.importorskip("apache_beam")

from bluelm_jax.data import loader
from bluelm_jax.data import sources
from bluelm_jax.data.chat import ChatFormat
from bluelm_jax.data.sample import Sample
from bluelm_jax.data.tokenizer import Tokenizer
from bluelm_jax.models import presets
from bluelm_jax.pipeline import defaults
from bluelm_jax.pipeline import documents
from bluelm_jax.pipeline import join
from bluelm_jax.pipeline import reading_order
from bluelm_jax.pipeline import run

ONE = ["--runner=FnApiRunner", "--direct_running_mode=in_memory", "--direct_num_workers=1"]
META = {"language": "en", "domain": "general"}


def page(path, text, **more):
  return Sample(f"docs: {path}", "MIT", text, meta={**META, **more})


def code(path, text, language="python"):
  return Sample(f"git: {path}", "MIT", text, meta={"language": "code", "domain": "computing", "code": language})


def config(tokens, least, max_bytes=0):
  return {"join": {"tokens": tokens, "least": least, "image_tokens": 10, "far": 4096}, "max_bytes": max_bytes}


def test_names_sort_by_their_numbers_and_what_introduces_comes_first():
  paths = ["a/ch10.html", "a/ch2.html", "b.html", "a/README.md", "a/index.html", "a/Ch1.html", "index.html", "10.html", "9.html"]
  assert sorted(paths, key=reading_order.natural) == ["index.html", "9.html", "10.html", "b.html", "a/index.html", "a/README.md", "a/Ch1.html", "a/ch2.html", "a/ch10.html"]


def test_what_is_needed_comes_before_and_circles_end():
  assert reading_order.order({"a": {"b", "gone"}, "b": {"c"}, "c": {"a"}, "d": set()}) == ["c", "b", "a", "d"]
  chain = {f"{i}": {f"{i + 1}"} for i in range(5000)}
  assert reading_order.order(chain) == [f"{i}" for i in range(4999, -1, -1)]


@pytest.mark.parametrize("language, path, text, wanted", [
    ("python", "r/pkg/a.py", "from . import c, d\nfrom .e import f", {"r/pkg/c.py", "r/pkg/d.py", "r/pkg/e.py", "r/pkg/e/f.py"}),
    ("python", "r/src/pkg/a.py", "import pkg.util as u, os\nfrom pkg import (one,\n  two)", {"r/src/pkg/util.py", "r/src/pkg/one.py", "r/src/pkg/two.py", "r/src/pkg/__init__.py"}),
    ("python", "r/pkg/sub/a.py", "  from ..b import c", {"r/pkg/b.py", "r/pkg/b/__init__.py"}), ("python", "pkg/a.py", "import pkg.b", {"pkg/b.py"}),
    ("javascript", "r/web/a.js", "import x from './b';\nconst y = require(\"../c.js\"); import('./d'); import 'left-pad'", {"r/web/b.ts", "r/web/b/index.js", "r/c.js", "r/web/d.js"}),
    ("c", "r/src/a.c", '#include "a.h"\n#include <stdio.h>\n# include "lib/b.h"', {"r/src/a.h", "r/include/lib/b.h", "r/src/lib/b.h"})])
def test_references(language, path, text, wanted):
  assert wanted <= set(reading_order.references(path, text, language, "r" if path.startswith("r/") else "pkg"))


def test_units():
  assert join.unit(page("guide/a.html", "x")) == "docs: guide/" and join.unit(page("a.html", "x")) == "docs: /"
  assert join.unit(code("flask/src/app.py", "x")) == "git: flask/" and join.unit(code("setup.py", "x")) == "git: /"
  assert join.unit(page("all.jsonl#12", "x")) == "docs: all.jsonl#12" and join.unit(page("all.jsonl#12", "x", book="Emma")) == "docs: Emma"
  assert join.unit(Sample("docs: a.png", "MIT", "A caption.", images=(b"i",), meta=META)) == "docs: a.png"
  assert join.unit(Sample("docs: a/b.html", "MIT", "<image>", images=(b"i",), meta=META)) == "docs: a/"


def test_a_repository_goes_from_what_is_imported_to_what_imports():
  files = [code("app/main.py", "from app import tool\nimport app.base"), code("app/tool.py", "import app.base"), code("app/base.py", "BASE = 1"), code("app/README.md", "# App", "markdown")]
  assert [join.path(s) for s in join.in_order(files)] == ["app/README.md", "app/base.py", "app/tool.py", "app/main.py"]
  (one,) = join.samples(files, config(1000, 100), len)
  assert one.text.startswith("<!-- app/README.md -->\n# App\n\n# app/base.py\nBASE = 1\n\n# app/tool.py\n") and one.meta["long"] == "joined"
  assert [one.text[at:].split("\n")[0].strip("#<>!- ") for _, at in one.meta["parts"]] == [path.removeprefix("git: ") for path, _ in one.meta["parts"]]


def test_a_book_follows_its_links_and_else_its_numbers():
  pages = [page("b/end.html", "e"), page("b/index.html", "i", next="b/start.html"), page("b/start.html", "s", next="b/middle.html"), page("b/middle.html", "m", next="b/end.html")]
  assert [s.text for s in join.in_order(pages)] == ["i", "s", "m", "e"]
  assert [s.text for s in join.in_order([page(f"b/{n}.txt", str(n)) for n in (10, 9, 1)])] == ["1", "9", "10"]


def test_long_documents_stay_whole_and_short_ones_fill_samples():
  pages = [page(f"b/{i:02d}.txt", chr(97 + i % 26) * (3000 if i in (4, 20) else 100)) for i in range(30)]
  found = join.samples(pages, config(1000, 400), len)
  native = [s for s in found if s.meta["long"] == "native"]
  assert [(s.source, len(s.text)) for s in native] == [("docs: b/04.txt", 3000), ("docs: b/20.txt", 3000)]  # longer than a row, and not cut
  joined = [s for s in found if s.meta["long"] == "joined"]
  assert [source for s in joined for source, _ in s.meta["parts"]] == [p.source for i, p in enumerate(pages) if i not in (4, 20)]
  assert len(joined) == 4 and all(500 <= len(s.text) <= s.meta["tokens"] <= 1000 for s in joined)  # 9, 9, 5 and 5: none is too short to stay
  by_source = {p.source: p.text for p in pages}
  assert all(s.text[at:].startswith(by_source[source]) for s in joined for source, at in s.meta["parts"])


def test_too_little_is_left_out_and_too_much_is_cut_if_wanted():
  assert join.samples([page("b/a.txt", "x" * 300)], config(1000, 400), len) == []
  long = page("b/a.txt", "\n".join(["y" * 99] * 30))
  assert [len(s.text) for s in join.samples([long], config(1000, 400, max_bytes=900), len)] == [len(t) for t in documents.split(long.text, 900)]
  whole = page("b/a.txt", "z" * 950)
  assert [s.text for s in join.samples([whole], config(1000, 400, max_bytes=500), len)] == [whole.text]  # not over a sample's length


def test_images_keep_their_places_and_marks_in_words_are_none():
  pictures = Sample("docs: b/1.html", "MIT", "One <image> and <image> two.", images=(b"1", b"2"), meta=META)
  words = page("b/2.html", "The element <image> is not HTML.")
  more = Sample("docs: b/3.html", "CC0-1.0", "<image>\nThree.", images=(b"3",), meta=META)
  (one,) = join.samples([more, words, pictures], config(1000, 100), len)
  assert one.images == (b"1", b"2", b"3") and one.text.count("<image>") == 3 and "element image is" in one.text
  assert one.licence == "CC0-1.0 AND MIT" and one.meta["tokens"] >= len(one.text) + 30


def picture(seed):
  image = np.random.default_rng(seed).integers(0, 255, (8, 8, 3)).astype(np.uint8)
  return cv2.imencode(".png", cv2.resize(image, (64, 64), interpolation=cv2.INTER_NEAREST))[1].tobytes()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """Two illustrated books in many pages, a repository, and a long text."""
  root = tmp_path_factory.mktemp("raw")
  shard = sources.read_shard("assets/text-train.array_record")
  texts = [s.text for s in (shard[i] for i in range(200)) if s.meta["language"] == "en"]
  for b in range(2):
    (root / f"books/{b}").mkdir(parents=True)
    for i in range(12):
      (root / f"books/{b}/{i}.png").write_bytes(picture(20 * b + i))
      lines = "".join(f"<p>{line}</p>" for line in texts[20 * b + i].split("\n"))
      link = f"<link rel='next' href='chapter{i + 1}.html'>" if i < 11 else ""
      (root / f"books/{b}/chapter{i}.html").write_text(f"<html><head>{link}</head><body><p>Chapter {i} of this book.</p><img src='{i}.png'/>{lines}</body></html>", "utf-8")
  (root / "books/long").mkdir()
  (root / "books/long/novel.txt").write_text("\n".join(texts[60:80]), "utf-8")
  (root / "code/app").mkdir(parents=True)
  for name, before in (("c", "d"), ("b", "c"), ("a", "b"), ("d", "os")):
    (root / f"code/app/{name}.py").write_text(f"import {before}\n" + "\n".join(f"def {name}_{i}(value):\n  return value + {i}\n" for i in range(60)))
  return root


def dataset(folder):
  c = defaults.dataset()
  c.name = "long"
  c.sources.books = dict(kind="html_interleaved", path=f"{folder}/books/*/*.html", licence="MIT")
  c.sources.texts = dict(kind="text", path=f"{folder}/books/*/*.txt", licence="CC0-1.0")
  c.sources.code = dict(kind="code", path=f"{folder}/code/**/*", licence="Apache-2.0")
  c.join.tokens, c.join.least, c.join.image_tokens, c.join.far = 8192, 2000, 60, 1000
  c.block_bytes = 20_000
  return c


@pytest.fixture(scope="module")
def made(folder, tmp_path_factory):
  output = tmp_path_factory.mktemp("made")
  return output, run.run(dataset(folder), str(output), ONE)


def read(output, manifest):
  return [s for name in manifest["shards"] for s in (lambda shard: [shard[i] for i in range(len(shard))])(sources.read_shard(str(output / name)))]


def test_a_data_set_of_long_samples(made):
  output, manifest = made
  found = read(output, manifest)
  native = [s for s in found if s.meta["long"] == "native"]
  assert [s.source for s in native] == ["texts: long/novel.txt"] and len(native[0].text) > 20_000
  books = sorted((s for s in found if s.images), key=lambda s: s.meta["parts"][0][0])
  chapters = [[source for source, _ in s.meta["parts"]] for s in books]
  assert sum(chapters, []) == [f"books: {b}/chapter{i}.html" for b in range(2) for i in range(12)]  # 10 after 9, and no book in another
  assert all(s.text.count("<image>") == len(s.images) == len(s.meta["parts"]) for s in books) and manifest["images"] == 24
  (repository,) = [s for s in found if s.meta["language"] == "code"]
  assert [source for source, _ in repository.meta["parts"]] == [f"code: app/{n}.py" for n in "dcba"]
  assert "\n  return value + 3\n" in repository.text and manifest["yields"]["clean"]["removed"] == {}
  assert all(s.meta["tokens"] <= 8192 or s.meta["long"] == "native" for s in found)


def test_the_report_stands_in_manifest_and_card(made):
  output, manifest = made
  report = json.loads((output / "manifest.json").read_text())["long"]
  assert report == manifest["long"] and report["far_is"] == 1000 and 0.99 < report["kept"] < 1.02
  assert report["native"]["samples"] == 1 and report["native"]["own"] > 0.8 and report["native"]["control"] is None
  assert report["joined"]["samples"] == manifest["documents"] - 1 and report["joined"]["beyond"] > 0.6 > report["joined"]["own"]
  card = (output / "card.html").read_text("utf-8")
  assert "<h2>Long range</h2>" in card and "the last N tokens do not hold" in card and "N = 1,000 tokens" in card


def test_the_loader_gives_long_samples_whole(made):
  output, manifest = made
  model = presets.miniature()
  chat = ChatFormat(Tokenizer(), model.anyres, model.tokens_per_tile)
  long = {"long": dict(kind="documents", path=str(output / "*.array_record"), share=1, window=32_768, epochs=1)}
  mixture = loader.mixture(long, chat, 32_768, 0)
  found = read(output, manifest)
  examples = [mixture[i] for i in range(len(found))]
  whole = {tuple(chat.tokenizer.encode(s.text)) for s in found if not s.images}
  assert whole == {tuple(e.tokens) for e in examples if not len(e.tiles)} and len(whole) == 2
  assert all(e.targets[-1] == chat.tokenizer.end_id for e in examples)
  assert sorted(len(e.tiles) for e in examples if len(e.tiles)) == sorted(len(s.images) for s in found if s.images)
  assert max(len(e.tokens) for e in examples) > 7000


def test_bytes_do_not_depend_on_blocks(made, folder, tmp_path):
  c = dataset(folder)
  c.block_bytes = 10**6
  manifest = run.run(c, str(tmp_path), ONE)
  assert {n: s["sha256"] for n, s in manifest["shards"].items()} == {n: s["sha256"] for n, s in made[1]["shards"].items()}


def test_a_book_is_held_out_whole(folder, tmp_path):
  c = dataset(folder)
  c.holdout, c.holdout_by = 2, "book"
  manifest = run.run(c, str(tmp_path), ONE)
  units = {split: {join.unit(s) if "parts" not in s.meta else s.source.split(" (")[0] for name in manifest["shards"] if f"-{split}-" in name for s in read(tmp_path, {"shards": [name]})} for split in ("train", "test")}
  assert units["train"] and units["test"] and not units["train"] & units["test"]


@pytest.mark.parametrize("change, reason", [(dict(tokens=100), "config.join.least is 0"), (dict(tokens=100, least=200), "least is 200"), (dict(far=0), "must be at least 1")])
def test_impossible_joins_are_refused(folder, tmp_path, change, reason):
  c = dataset(folder)
  c.join.update(dict(tokens=0, least=0) | change)
  with pytest.raises(ValueError, match=reason):
    run.run(c, str(tmp_path), ONE)
