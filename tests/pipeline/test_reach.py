"""The report of long range: by hand, and that it tells long documents from long rows."""

import numpy as np
import pytest

from bluelm_jax.pipeline import reach


def words(rng, count):
  return ["w" + "".join(map(chr, 97 + letters)) for letters in rng.integers(0, 26, (count, 8))]


def test_by_hand():
  # One token a character, N = 20. Beyond 20: "alpha" returns from 27 back, "gamma" is near, "delta" is new.
  text = "alpha bravo " + "gamma " * 2 + ". . alpha gamma delta "
  found = reach.terms([text], [len(text)])
  assert [int(p) for p in found.place] == [0, 6, 12, 18, 28, 34, 40]
  every = np.ones(len(found.term), bool)
  assert reach.far(found, every, 20) == (2, 1)
  assert reach.far(found, every, 30) == (1, 0)  # gamma has been near, delta is new
  assert reach.far(found, np.arange(7) != 4, 20) == (1, 0)


def test_terms_are_words_identifiers_and_han_in_fours():
  found = reach.terms(["def read_file(x1): 读取文件内容 读取文件"], [60])
  assert found.term.tolist() == [0, 1, 2, 3, 1]  # read_file, 读取文件, 取文件内, 文件内容, 读取文件


def test_what_stands_in_many_pieces_is_not_rare():
  rng = np.random.default_rng(0)
  texts = [" ".join(w for word in words(rng, 200) for w in ("common", word)) for _ in range(20)]
  found = reach.terms(texts, [len(t) for t in texts])
  is_rare = reach.rare(found, 100)
  assert not is_rare[found.term == found.term[0]].any() and is_rare[found.term != found.term[0]].all()


def documents(rng, count, names):
  """Texts that use their own names all along, among words that everybody uses."""
  shared = words(rng, 500)
  made = []
  for own in (words(rng, names) for _ in range(count)):
    made.append(" ".join(own[i % names] if i % 10 == 0 else shared[i % 500] for i in rng.integers(0, 1_000_000, 3000)))
  return made


def test_long_documents_reach_far_and_rows_joined_at_random_do_not():
  rng = np.random.default_rng(1)
  long = documents(rng, 24, 150)
  pieces = [text[i : i + 2000] for text in long for i in range(0, len(text) - 2000, 2000)]
  mixed = [" ".join(pieces[i] for i in rng.permutation(len(pieces))[:13]) for _ in range(24)]
  report = {}
  for name, texts in (("long", long), ("mixed", mixed)):
    tokens = [len(t) // 4 for t in texts]
    report[name] = reach.shares(reach.counts(texts, tokens, [[0]] * len(texts), 1000))
  # Each of 150 names stands about twice in a document of 3,000 words: under half of the names met as new have been met.
  assert 0.3 < report["long"]["far"] < 0.6 and report["long"]["control"] < 0.02
  assert report["mixed"]["far"] < 0.1 and report["mixed"]["true"] < 0.1  # two pieces of one document may have met


def test_lengths_are_of_all_samples():
  texts = ["x" * 100] * 200
  counts = reach.counts(texts, [50] * 200, [[0, 60]] * 200, 20)
  assert counts["samples"] == 200 and counts["tokens"] == 10_000
  assert counts["beyond"] == 200 * 30 and counts["own"] == 200 * 10  # documents of 30 and 20 tokens
  assert reach.shares(counts)["own"] == pytest.approx(0.2)


def test_pieces_of_one_sample_never_meet_in_the_control():
  rng = np.random.default_rng(2)
  texts = [" ".join(words(rng, n)) for n in (40, 90, 130, 150, 300)]
  tokens = [len(t) for t in texts]
  found = reach.terms(texts, tokens)
  use, dealt = reach.shuffled(found, 300)
  assert use.any() and not use.all()  # most pieces are of the longest sample, which none can match
  origin = np.stack([found.sample, found.place // 300], 1)[use]
  for sample in np.unique(dealt.sample):
    inside = dealt.sample == sample
    met = np.unique(np.column_stack([dealt.place[inside] // 300, origin[inside]]), axis=0)
    assert len(met) > 1 and len(np.unique(met[:, 0])) == len(met) == len(np.unique(met[:, 1]))


@pytest.mark.parametrize("texts", [[], [""], ["one document alone " * 300], ["a", "b"]])
def test_nothing_to_compare_is_none(texts):
  found = reach.shares(reach.counts(texts, [len(t) for t in texts], [[0]] * len(texts), 50))
  assert found["control"] is None and found["true"] is None
