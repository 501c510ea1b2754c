"""Windows of long texts: which come, how often, and that they are cut from what the whole text gives."""

import collections

import numpy as np
import pytest

from bluelm_jax.data import sample
from bluelm_jax.data import sources
from bluelm_jax.data.chat import ChatFormat
from bluelm_jax.data.tokenizer import Tokenizer

TOKENIZER = Tokenizer()


def prose(language, characters):
  shard = sources.read_shard("assets/text-train.array_record")
  text = "\n".join(s.text for s in (shard[i] for i in range(len(shard))) if s.meta["language"] == language)
  return text[:characters]


def windows(text, length, count, seed=0):
  rng = np.random.default_rng(seed)
  return [sources.text_window(text, TOKENIZER, length, rng) for _ in range(count)]


@pytest.mark.parametrize("language, least", [("en", 1.0), ("zh", 0.97)])  # a Chinese sentence has no spaces to cut at
def test_windows_of_a_long_text_are_full_and_stand_in_it(language, least):
  text = prose(language, 120_000)
  assert len(text) > sources._WHOLE
  whole = np.array([*TOKENIZER.encode(text), TOKENIZER.end_id], np.int32).tobytes()
  found = windows(text, 500, 100)
  assert all(len(w) == 501 and w.dtype == np.int32 for w in found)
  assert np.mean([w.tobytes() in whole for w in found]) >= least


def test_every_window_comes_as_often_as_its_first_token_has_characters(monkeypatch):
  monkeypatch.setattr(sources, "_WHOLE", 0)
  text = " ".join("the of and to in file command you can be".split()[i % 10] for i in range(60))
  ids = [*TOKENIZER.encode(text), TOKENIZER.end_id]
  length = len(ids) - 12  # so that the valid starts are 0 to 11
  characters = np.array([len(TOKENIZER.decode([i])) for i in ids[:12]])
  counts = collections.Counter(tuple(w) for w in windows(text, length, 6000))
  assert set(counts) == {tuple(ids[i : i + length + 1]) for i in range(12)}  # the first, the last with the end token, and none that is short
  got = np.array([counts[tuple(ids[i : i + length + 1])] for i in range(12)])
  expected = 6000 * characters / characters.sum()
  assert ((got - expected) ** 2 / expected).sum() < 31.3  # chi squared with 11 degrees of freedom, p = 0.001


def test_a_text_of_few_tokens_is_its_own_window():
  text = "x" + " " * 40_000 + "\n" + "=" * 40_000
  ids = [*TOKENIZER.encode(text), TOKENIZER.end_id]
  assert all(w.tolist() == ids for w in windows(text, len(ids) + 5, 3))


def test_the_end_token_stands_at_the_true_end_alone(monkeypatch):
  monkeypatch.setattr(sources, "_WHOLE", 0)
  text = prose("en", 1200)
  ids = TOKENIZER.encode(text)
  last, length = ids[-20:], len(ids) - 100
  ended = [w for w in windows(text, length, 1000) if TOKENIZER.end_id in w]
  assert 0 < len(ended) < 60  # of 101 windows one
  assert all(w[-1] == TOKENIZER.end_id and w[:-1].tolist()[-20:] == last for w in ended)


def test_the_loader_gives_the_same_windows_again(tmp_path):
  path = str(tmp_path / "long.array_record")
  sample.write_shard(path, [sample.Sample("s", "l", prose(language, 200_000)) for language in ("en", "zh")])
  first, again = (sources.documents(path, ChatFormat(TOKENIZER, None, 1), 1024, 3, 0).examples for _ in range(2))
  for i in range(6):
    assert first[i].tokens.tolist() == again[i].tokens.tolist() and len(first[i].tokens) == 1024
  assert first[0].tokens.tolist() != first[2].tokens.tolist()  # another place in another epoch
