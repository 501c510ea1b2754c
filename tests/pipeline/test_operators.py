"""Normalising, language, rules, labels, mixtures, documents."""

import collections
import unicodedata

from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
import numpy as np
import pytest

pytest.importorskip("apache_beam")

from bluelm_jax.data.sample import Sample
from bluelm_jax.pipeline import classify
from bluelm_jax.pipeline import documents
from bluelm_jax.pipeline import language
from bluelm_jax.pipeline import mixture
from bluelm_jax.pipeline import tokens
from bluelm_jax.pipeline.normalise import normalise
from bluelm_jax.pipeline.quality import c4
from bluelm_jax.pipeline.quality import fineweb
from bluelm_jax.pipeline.quality import gopher
from bluelm_jax.pipeline.quality import repetition

ENGLISH = (
    "The river runs through the valley and past the old mill. Many people have walked along its banks, and they know each bend of it. "
    "In spring the water is high, so that boats can go up to the town. Later in the year it is only good for the ducks. "
    "Nobody who lives here would be without it.")
CHINESE = "这条河穿过山谷，流经一座老磨坊。许多人在河岸上走过，他们熟悉每一个弯道。春天水位很高，船可以一直开到镇上。到了下半年，河里只有鸭子。住在这里的人都离不开它，也不愿意搬到别的地方去，因为这里的水和空气都很好。"


@pytest.mark.parametrize("given, wanted", [
    ("a\r\nb\rc", "a\nb\nc"), ("a \t\xa0 b", "a b"), ("  a  \n\n\n\n b ", "a\n\nb"), ("e\u0301", "é"), ("a\x00\u200b\ufeffb", "ab"), ("全角，标点", "全角，标点"),
    ("中\u3000文", "中 文"), ("Â\x1f¡", "¡"), ("e\u200b\u0301", "é"), ("caf\xc3\xa9 au lait, s\xe2\x80\x99il vous pla\xc3\xaet", "café au lait, s’il vous plaît"), ("Ångström façade naïve", "Ångström façade naïve")])
def test_normalise(given, wanted):
  assert normalise(given) == wanted


@settings(max_examples=300, deadline=None)
@given(st.text())
def test_normalising_twice_changes_nothing_more(text):
  once = normalise(text)
  assert normalise(once) == once == unicodedata.normalize("NFC", once)


@pytest.mark.parametrize("text, code", [
    (ENGLISH, "en"), (ENGLISH.upper(), "en"), (CHINESE, "zh"), ("これは日本語の文章です。漢字も使いますが、仮名が多いです。", "ja"), ("이것은 한국어로 쓴 문장입니다. 한글은 쉽습니다.", "ko"),
    ("Der Fluss fließt durch das Tal und an der alten Mühle vorbei.", "de"), ("De rivier stroomt door het dal en langs de oude molen, waar veel mensen lopen.", "nl"), ("用 pip install numpy 来安装 numpy 软件包", "zh")])
def test_language(text, code):
  assert language.detect(text)[0] == code


def test_lines_of_another_script_go():
  assert language.own_script(f"{CHINESE}\n{ENGLISH}\n<image>\n用 apt 命令安装这个软件包。", "zh") == f"{CHINESE}\n<image>\n用 apt 命令安装这个软件包。"
  assert language.own_script(f"{ENGLISH}\nThe word 河 means river.", "en") == ENGLISH


@pytest.mark.parametrize("text, code", [(ENGLISH, "en"), (CHINESE, "zh")])
def test_prose_breaks_no_rule(text, code):
  assert gopher.broken(text, code) == c4.broken(text) == fineweb.broken(text, code) == ""
  assert repetition.broken([text], [code], tokens.words([text])) == [""]


@pytest.mark.parametrize("text, code, rule", [
    ("Too short.", "en", "gopher_length"), ("太短。", "zh", "gopher_length"), (ENGLISH.replace(" ", ""), "en", "gopher_length"), ("a b c d " * 40, "en", "gopher_word_length"),
    ("1234 $$$$ " * 40, "en", "gopher_letters"), (ENGLISH + " 1234" * 40, "en", "gopher_letters"), (CHINESE + "abc def ghi " * 40, "zh", "gopher_letters"), ("river valley mill town bank " * 20, "en", "gopher_stop_words"),
    ("河山谷磨坊船鸭水" * 20, "zh", "gopher_stop_words"), (ENGLISH + " #tag #word" * 20, "en", "gopher_symbols"), ("\n".join(f"- {s}" for s in ENGLISH.split(". ")), "en", "gopher_bullets"),
    (ENGLISH.replace(".", "...\n"), "en", "gopher_ellipses")])
def test_gopher(text, code, rule):
  assert gopher.broken(text, code) == rule


def _slow_shares(words, n):
  """By the definitions, word by word: characters in the most frequent n-gram, and in n-grams that have occurred."""
  grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
  counts = collections.Counter(grams)
  most = max([c for c in counts.values() if c > 1], default=0)
  top = max([sum(map(len, g)) * c for g, c in counts.items() if c == most], default=0)
  seen, covered = set(), set()
  for i, gram in enumerate(grams):
    covered |= set(range(i, i + n)) if gram in seen else set()
    seen.add(gram)
  return top, sum(len(words[i]) for i in covered)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(st.sampled_from(["a", "bb", "ccc", "dddd", "e"]), max_size=40), min_size=1, max_size=4), st.integers(2, 6))
def test_repetition_counts_as_its_definition(texts, n):
  words = tokens.words([" ".join(t) for t in texts])
  top, duplicate = repetition._top(words, n)[0], repetition._duplicate(words, n)
  assert [(int(t), int(d)) for t, d in zip(top, duplicate)] == [_slow_shares(t, n) for t in texts]


@pytest.mark.parametrize("text, code, rule", [
    ("One line here.\n" * 4 + ENGLISH.replace(". ", ".\n"), "en", "gopher_duplicate_lines"),
    (" ".join(f"{ENGLISH[:60]} number{i} and other{i} words{i}." for i in range(6)), "en", "gopher_duplicate_5_grams"),
    (" ".join(f"unusually{i} interestingly{i} hippopotamus rhinoceros different{i}" for i in range(20)), "en", "gopher_top_2_gram"),
    ("".join(f"春天水位很高船可以{chr(0x4E00 + i)}{chr(0x5E00 + i)}" for i in range(20)), "zh", "gopher_duplicate_5_grams")])
def test_repetition(text, code, rule):
  assert repetition.broken([ENGLISH, text, CHINESE], ["en", code, "zh"], tokens.words([ENGLISH, text, CHINESE])) == ["", rule, ""]


def test_later_rules_are_not_lost_by_looking_at_few():
  """Bounds that spare a second look give what looking at all gives."""
  rng = np.random.default_rng(0)
  texts = []
  for _ in range(300):  # a phrase of some words a few times among others that occur once
    phrase = " ".join(f"phrase{i}" for i in range(rng.integers(2, 16)))
    parts = [f"other{i}" for i in range(rng.integers(20, 150))] + [phrase] * rng.integers(1, 8)
    texts.append(" ".join(rng.permutation(parts)))
  words = tokens.words(texts)
  size = np.array([len(t.replace(" ", "")) for t in texts])
  slow = np.zeros(len(texts), bool)
  for n, limit in repetition._TOP.items():
    slow |= repetition._top(words, n)[0] > limit * size
  for n, limit in repetition._DUPLICATE.items():
    slow |= repetition._duplicate(words, n) > limit * size
  fast = np.array([bool(rule) for rule in repetition.broken(texts, ["en"] * len(texts), words)])
  assert (fast == slow).all() and 60 < slow.sum() < 240


def test_c4():
  assert c4.broken("One. Two.") == "c4_sentences" and c4.broken(ENGLISH + " Lorem ipsum dolor.") == "c4_lorem_ipsum" and c4.broken("一句。两句！三句？") == ""
  assert c4.prose_lines(f"Menu\n{ENGLISH}\nThis site uses cookies to serve you well.\n版权所有，翻印必究，违者必须承担责任。\n{CHINESE}\nHome > News") == f"{ENGLISH}\n{CHINESE}"


@pytest.mark.parametrize("text, code, rule", [
    ("", "en", "fineweb_empty"), ("\n".join(f"A line without any end, number {i}" for i in range(10)), "en", "fineweb_punctuation"),
    (f"{ENGLISH}\n{ENGLISH}", "en", "fineweb_duplicate_lines"), ("\n".join(f"Line {i}." for i in range(10)), "en", "fineweb_short_lines"),
    ("\n".join(f"第{i}行。" for i in range(10)), "zh", "fineweb_short_lines"), ("\n".join(f"这是一个不短的中文行，第{i}行。" for i in range(10)), "zh", "")])
def test_fineweb(text, code, rule):
  assert fineweb.broken(text, code) == rule


def test_domains_and_abilities():
  assert classify.domain("Install the package, then edit the file and restart the server.") == "computing"
  assert classify.domain("请安装该软件，然后单击菜单中的命令。") == "computing" and classify.domain("患者的症状在治疗后消失。") == "medicine" and classify.domain(ENGLISH) == "general"
  turn = lambda content, **more: ({"role": "user", "content": "?"}, {"role": "assistant", "content": content, **more})
  cases = {
      "language": Sample("s", "l", "text"), "long_context": Sample("s", "l", "x" * 30_000), "captioning": Sample("s", "l", "text", images=(b"",)),
      "conversation": Sample("s", "l", messages=turn("a")), "reasoning": Sample("s", "l", messages=turn("a", reasoning_content="b")),
      "grounding": Sample("s", "l", messages=turn("it is at (500,060)"), images=(b"",)), "visual_conversation": Sample("s", "l", messages=turn("a"), images=(b"",)),
      "visual_reasoning": Sample("s", "l", messages=turn("a", reasoning_content="b"), images=(b"",))}
  assert {name: classify.ability(sample) for name, sample in cases.items()} == {name: name for name in cases}


def test_temperature_and_unimax_by_hand():
  sizes = {"a": 100.0, "b": 900.0}
  assert mixture.natural(sizes) == {"a": 0.1, "b": 0.9}
  assert mixture.temperature(sizes, 2.0) == {"a": 0.25, "b": 0.75}
  assert mixture.unimax(sizes, budget=150, max_epochs=4) == {"a": 0.5, "b": 0.5}  # both can give half
  shares = mixture.unimax(sizes, budget=1000, max_epochs=2)  # a gives 200 at most, b the rest
  assert shares == {"a": 0.2, "b": 0.8}


def test_the_fitted_rule_finds_the_best_of_a_known_law():
  """Losses follow a law whose best mixture is known: log-losses are linear, so one group is best."""
  rng = np.random.default_rng(0)
  groups, weight = ["en", "zh", "code"], np.array([0.3, -0.8, 0.1])
  runs = [{"shares": dict(zip(groups, s)), "loss": 1.5 + float(np.exp(weight @ s)) + float(rng.normal(0, 0.005))} for s in rng.dirichlet(np.ones(3), 24)]
  shares = mixture.fitted(groups, runs, {"en": 1.0, "zh": 1.0, "code": 1.0}, seed=0)
  assert sum(shares.values()) == pytest.approx(1) and shares["zh"] > 0.8
  law = mixture.fit_law(np.array([[r["shares"][g] for g in groups] for r in runs]), np.array([r["loss"] for r in runs]))
  held = rng.dirichlet(np.ones(3), 100)
  np.testing.assert_allclose(mixture.predict(law, held), 1.5 + np.exp(held @ weight), atol=0.02)


def test_proxy_runs_that_cannot_be_fitted_are_refused():
  with pytest.raises(ValueError, match="at least 4"):
    mixture.fitted(["a", "b"], [{"shares": {"a": 1.0}, "loss": 1.0}], {"a": 1, "b": 1}, 0)
  with pytest.raises(ValueError, match="add up to 1"):
    mixture.fitted(["a", "b"], [{"shares": {"a": 1.0, "b": 1.0}, "loss": 1.0}] * 4, {"a": 1, "b": 1}, 0)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text("ab", min_size=1, max_size=30), min_size=1, max_size=40), st.integers(31, 200))
def test_split_keeps_every_paragraph_within_the_size(paragraphs, most):
  pieces = documents.split("\n".join(paragraphs), most)
  assert "\n".join(pieces) == "\n".join(paragraphs) and max(map(len, pieces)) <= most


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 120), max_size=60))
def test_packing_places_each_once_and_within_the_row(lengths):
  rows = documents.packing(lengths, 100)
  assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
  assert all(sum(lengths[i] for i in row) <= 100 or len(row) == 1 for row in rows)


def test_packing_is_full():
  rng = np.random.default_rng(0)
  lengths = np.clip(rng.lognormal(np.log(400), 1.2, 6000), 1, 4096).astype(int)
  assert lengths.sum() / (len(documents.packing(lengths, 4096)) * 4096) > 0.99
