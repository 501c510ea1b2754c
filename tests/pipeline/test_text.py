"""The shipped prose."""

import functools

import pytest

from bluelm_jax.data import sources
from bluelm_jax.data.tokenizer import Tokenizer
from bluelm_jax.pipeline import language

LICENCES = {"CC-BY-SA-3.0", "MPL-2.0", "PSF-2.0"}


@functools.cache
def _read(split):
  records = sources.read_shard(f"assets/text-{split}.array_record")
  return [records[i] for i in range(len(records))]


def _bytes(split, language):
  return sum(len(s.text.encode()) for s in _read(split) if s.meta["language"] == language)


@pytest.mark.parametrize("split", ["train", "test"])
def test_every_document_says_what_it_is(split):
  for document in _read(split):
    assert document.source and document.licence in LICENCES and document.meta["language"] in ("zh", "en")
    assert not document.messages and not document.images
    tokens, joined = len(Tokenizer().encode(document.text)), document.meta["long"] == "joined"
    cut = not joined and len(document.text.encode()) <= 3400
    assert 480 <= tokens and (tokens <= 1700 or cut)  # as configs/data/miniature_text.py says


@pytest.mark.parametrize("split", ["train", "test"])
def test_documents_are_in_their_language(split):
  for document in _read(split):
    share = language.han_share(document.text)
    assert share > 0.55 if document.meta["language"] == "zh" else share == 0


@pytest.mark.parametrize("language", ["zh", "en"])
def test_sizes(language):
  assert 1_150_000 < _bytes("train", language) < 1_300_000
  assert 60_000 < _bytes("test", language) < 100_000


def test_shards_are_small():
  paths = [sources.ASSETS / f"text-{split}.array_record" for split in ("train", "test")]
  assert sum(path.stat().st_size for path in paths) <= 3_200_000


def test_no_test_paragraph_stands_in_train():
  train = "\n".join(s.text for s in _read("train"))
  whole = set(train.split("\n"))
  for document in _read("test"):
    for paragraph in filter(None, document.text.split("\n")):  # two line feeds stand between pages
      assert paragraph not in whole
      assert len(paragraph) < 40 or paragraph not in train


def test_no_page_on_both_sides():
  parts = {split: [part for s in _read(split) for part in s.meta.get("parts", [[s.source, 0]])] for split in ("train", "test")}
  pages = {split: {source.split(": ")[1] for source, _ in found} for split, found in parts.items()}
  assert not pages["train"] & pages["test"]


def test_every_licence_is_attributed():
  notice = (sources.ASSETS / "TEXT.md").read_text("utf-8")
  for document in _read("train") + _read("test"):
    assert document.source.split(":")[0] in notice and document.licence in notice
