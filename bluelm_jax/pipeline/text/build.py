"""Rebuilds the prose shipped with the package from Debian's documentation packages.

  python -m bluelm_jax.pipeline.text.build --output=bluelm_jax/data/assets

Needs apt-get (packages are unpacked, never installed). Whole pages go to train or to test by a hash of
their name, a translation with its original. A paragraph is kept once, whatever its case and punctuation,
and a train paragraph that contains a whole test paragraph is left out. Pages that read like prose
(handbooks, tutorials, guides) come first, reference pages fill up to the wanted size.
"""

import dataclasses
import pathlib
import re
import tempfile
from typing import Iterator
import zlib

from absl import flags
import numpy as np

from bluelm_jax import door
from bluelm_jax.data import sample
from bluelm_jax.pipeline import documents
from bluelm_jax.pipeline import language as language_lib
from bluelm_jax.pipeline.ingest import debian
from bluelm_jax.pipeline.ingest import html


@dataclasses.dataclass(frozen=True)
class Source:
  package: str
  files: str  # glob inside the package
  language: str
  licence: str
  prose: bool = True  # reads like prose; the others only fill up


_HANDBOOK = "usr/share/doc/debian-handbook/html"
_PYTHON = "usr/share/doc/python3.11/html"
_OFFICE = "usr/share/libreoffice/help"
SOURCES = (
    Source("debian-handbook", f"{_HANDBOOK}/zh-CN/*.html", "zh", "CC-BY-SA-3.0"),
    Source("libreoffice-help-zh-cn", f"{_OFFICE}/zh-CN/text/*/guide/*.html", "zh", "MPL-2.0"),
    Source("libreoffice-help-zh-cn", f"{_OFFICE}/zh-CN/text/**/*.html", "zh", "MPL-2.0", prose=False),
    Source("debian-handbook", f"{_HANDBOOK}/en-US/*.html", "en", "CC-BY-SA-3.0"),
    Source("python3.11-doc", f"{_PYTHON}/tutorial/*.html", "en", "PSF-2.0"),
    Source("python3.11-doc", f"{_PYTHON}/howto/*.html", "en", "PSF-2.0"),
    Source("python3.11-doc", f"{_PYTHON}/faq/*.html", "en", "PSF-2.0"),
    Source("libreoffice-help-en-us", f"{_OFFICE}/en-US/text/*/guide/*.html", "en", "MPL-2.0"),
    Source("libreoffice-help-en-us", f"{_OFFICE}/en-US/text/**/*.html", "en", "MPL-2.0", prose=False),
)
_TEST_ONE_IN, _TEST_REST = 16, 6  # this rest puts every package on both sides
_MIN_BYTES, _FULL_BYTES, _MAX_BYTES = 1000, 3000, 4000  # of a document
_HEAD = 24  # letters of a test paragraph by which it is looked up
_BOILERPLATE = re.compile(r"help page needs further work")
_PLAIN = str.maketrans({"\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"', "\u2013": "-", "\u2014": "-", "\u2026": "...", "\xa0": " ", "\xb6": ""})


def is_prose(text: str, language: str) -> bool:
  """Long enough, not boilerplate, ends like a sentence, few digits and signs, and in the language."""
  if _BOILERPLATE.search(text):
    return False
  if language == "zh":
    return len(text) >= 16 and language_lib.han_share(text) > 0.55 and text[-1] in "。！？：；"
  letters = sum(c.isalpha() or c == " " for c in text) / len(text)
  return len(text) >= 50 and letters > 0.9 and language_lib.han_share(text) == 0 and text[-1] in ".!?:;" and text.isascii()


def paragraphs(page: str, language: str) -> list[str]:
  return [p for p in html.paragraphs(page.translate(_PLAIN) if language == "en" else page) if is_prose(p, language)]


def letters(text: str) -> str:
  """The text without case, spaces and signs: equal for near copies."""
  return re.sub(r"[\W_]+", "", text.lower())


class Heads:
  """Finds whole test paragraphs inside other texts."""

  def __init__(self):
    self._by_head = {}

  def add(self, text: str):
    key = letters(text)
    if len(key) >= _HEAD:
      self._by_head.setdefault(key[:_HEAD], []).append(key)

  def inside(self, text: str) -> bool:
    key = letters(text)
    return any(
        key.startswith(found, i) for i in range(len(key) - _HEAD + 1) for found in self._by_head.get(key[i : i + _HEAD], ()))


def is_test(page: str) -> bool:
  return zlib.crc32(page.encode()) % _TEST_ONE_IN == _TEST_REST


def read_pages(root: pathlib.Path, source: Source, test: bool) -> Iterator[tuple[str, str]]:
  """(page, paragraph) of one side of the split, in the order of the file names."""
  base = root / source.files.split("*")[0]
  for path in sorted(root.glob(source.files)):
    page = path.relative_to(base).as_posix()
    if is_test(page) == test and page != "index.html":
      for text in paragraphs(path.read_text("utf-8", errors="replace"), source.language):
        yield page, text


def build(work: pathlib.Path, train_bytes: int, seed: int) -> dict[str, list[sample.Sample]]:
  """Both splits; the test side is read first, so its paragraphs never appear in train."""
  rng = np.random.default_rng(seed)
  splits, seen, heads = {}, set(), Heads()
  for split, limit in (("test", train_bytes // 15), ("train", train_bytes)):
    splits[split] = []
    for language in ("zh", "en"):
      found = {True: [], False: []}  # by Source.prose
      for source in (s for s in SOURCES if s.language == language):
        fresh = []
        for page, text in read_pages(debian.unpack(source.package, work), source, split == "test"):
          key = letters(text)
          if key not in seen and not heads.inside(text):
            seen.add(key)
            fresh.append((page, text))
            if split == "test":
              heads.add(text)
        for pages, text in documents.join(fresh, _MIN_BYTES, _FULL_BYTES, _MAX_BYTES):
          name = f"{source.package}: {' '.join(pages)}"
          found[source.prose].append(sample.Sample(name, source.licence, text, meta={"language": language}))
      total = 0
      for prose in (True, False):
        for i in rng.permutation(len(found[prose])):
          if total < limit:
            splits[split].append(found[prose][i])
            total += len(found[prose][i].text.encode())
    splits[split] = [splits[split][i] for i in rng.permutation(len(splits[split]))]
  return splits


def main(argv):
  del argv
  output = pathlib.Path(flags.FLAGS.output)
  output.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryDirectory() as work:
    splits = build(pathlib.Path(work), flags.FLAGS.bytes, flags.FLAGS.seed)
  for split, samples in splits.items():
    path = output / f"text-{split}.array_record"
    sample.write_shard(path, samples)
    for language in ("zh", "en"):
      texts = [s.text for s in samples if s.meta["language"] == language]
      print(f"{split} {language}: {len(texts)} documents, {sum(len(t.encode()) for t in texts):,} bytes")
    print(f"{path}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
  flags.DEFINE_string("output", None, "Directory for text-train.array_record and text-test.array_record.")
  flags.DEFINE_integer("seed", 0, "Order of the documents.")
  flags.DEFINE_integer("bytes", 1_200_000, "UTF-8 bytes of train text a language.")
  door.run(main, required=("output",))
