"""The shipped tokenizer.json and the training that makes it."""

import string

from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
import pytest
import tokenizers

from bluelm_jax.data import sources
from bluelm_jax.models import presets
from bluelm_jax.pipeline import tokenizer as pipeline

TOKENIZER = tokenizers.Tokenizer.from_file(str(sources.ASSETS / "tokenizer.json"))


def _ids(text):
  return TOKENIZER.encode(text, add_special_tokens=False).ids


def _back(text, tokenizer=TOKENIZER):
  return tokenizer.decode(tokenizer.encode(text, add_special_tokens=False).ids, skip_special_tokens=False)


@settings(max_examples=300, deadline=None)
@given(st.text())
def test_round_trip(text):
  assert _back(text) == text


@pytest.mark.parametrize("text", ["", " ", "a  b   c\n\n\td ", "你好，世界！ 再见。", "🎉👩‍👩‍👧 é ü", "\x00\ufffd\r\n", "<image>a<think> b</think>"])
def test_round_trip_of_the_awkward(text):
  assert _back(text) == text


def test_special_tokens_have_the_first_ids():
  expected = [
      "<|pad|>", "<|endoftext|>", "[|Human|]:", "[|AI|]:", "[|System|]:", "[|BlueThink|]", "<think>", "</think>", "<im_start>",
      "<image>", "<im_end>", *(f"<tile_{i}>" for i in range(16)), "<thumbnail>"]
  assert [TOKENIZER.id_to_token(i) for i in range(len(expected))] == expected
  for i, token in enumerate(expected):
    assert _ids(f"a{token}b")[1:-1] == [i]


def test_vocabulary_size():
  assert 1024 + len(pipeline.COORDINATES) < TOKENIZER.get_vocab_size() <= presets.miniature().decoder.vocab_size


@pytest.mark.parametrize("word", pipeline.WORDS + pipeline.COORDINATES)
def test_words_and_coordinates_of_elements_are_one_token(word):
  assert len(_ids(word)) == 1 and _ids(f"x;{word};")[2:-1] == _ids(word)


@given(st.text(string.digits, min_size=1, max_size=30))
def test_every_digit_is_one_token(digits):
  assert len(_ids(digits)) == len(digits)


def test_no_token_holds_a_digit_and_more():
  words = set(TOKENIZER.get_vocab()) - set(pipeline.SPECIAL) - set(pipeline.COORDINATES)
  assert not [w for w in words if len(w) > 1 and set(w) & set(string.digits)]


@pytest.mark.parametrize("letter", ["A", "M", "Z"])
def test_a_lone_capital_is_the_same_token_everywhere(letter):
  token = TOKENIZER.token_to_id(letter)
  for text in (letter, f" {letter}", f"{letter}12;", f"是{letter}还", f"({letter})"):
    assert token in _ids(text)


def test_a_leading_space_belongs_to_the_word():
  assert [TOKENIZER.id_to_token(i) for i in _ids("1 the")] == ["1", "Ġthe"]


def test_extra_texts_get_short_encodings():
  prose = ["the quick brown fox jumps over the lazy dog"] * 20
  phrase = "zyxwvut"
  sizes = []
  for extra in ([], [phrase] * 50):
    tokenizer = pipeline.train(prose, 340, extra)
    assert _back(phrase, tokenizer) == phrase
    sizes.append(len(tokenizer.encode(phrase).ids))
  assert sizes[1] == 1 < sizes[0]
