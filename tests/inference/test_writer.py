"""Tokens to text: nothing is lost, split within a character, or shown that belongs to a stop text."""

import itertools

import numpy as np
import pytest

from bluelm_jax.data.tokenizer import Tokenizer
from bluelm_jax.inference.request import Token
from bluelm_jax.inference.text import Writer

TOKENIZER = Tokenizer()
THINK, CLOSE, END = TOKENIZER.special_id("<think>"), TOKENIZER.special_id("</think>"), TOKENIZER.end_id


def token(i, phase="answer", finish=None):
  return Token(0, 0, i, 0.0, 0.0, phase, False, 0, (), finish)


def written(tokens, stop=()):
  """(pieces, writer) of these tokens."""
  writer = Writer(TOKENIZER, stop)
  return [piece for t in tokens for piece in writer.add(t)], writer


def joined(pieces, phase):
  return "".join(p.text for p in pieces if p.phase == phase)


def test_thought_and_answer_apart_without_their_marks():
  thought, answer = TOKENIZER.encode("想想 b"), TOKENIZER.encode("答案: (500,060) 🙂")
  tokens = [token(i, "think") for i in [THINK, *thought, CLOSE]] + [token(i) for i in answer] + [token(END, finish="stop")]
  pieces, writer = written(tokens)
  assert (joined(pieces, "think"), joined(pieces, "answer"), writer.finish) == ("想想 b", "答案: (500,060) 🙂", "stop")
  assert [p.phase for p in pieces] == sorted((p.phase for p in pieces), reverse=True)
  assert not any("\ufffd" in p.text or not p.text for p in pieces)


def test_an_unfinished_character_is_told_at_the_end():
  ids = TOKENIZER.encode("a🙂")
  pieces, writer = written([token(i) for i in ids[:-2]] + [token(ids[-2], finish="length")])
  assert joined(pieces, "answer") == TOKENIZER.decode(ids[:-1]) and "\ufffd" in pieces[-1].text and writer.finish == "length"
  assert "\ufffd" not in pieces[0].text
  pieces, _ = written([token(i, "think") for i in ids[:-1]] + [token(i) for i in TOKENIZER.encode("好", )])
  assert joined(pieces, "answer") == "好" and joined(pieces, "think").startswith("a\ufffd")


def test_any_tokens_come_out_as_decoded_whole():
  rng, silent = np.random.default_rng(0), {THINK, CLOSE, *TOKENIZER.end_ids}
  for _ in range(200):
    ids = [int(i) for i in rng.integers(0, TOKENIZER.vocab_size, 40) if i not in silent]
    pieces, _ = written([token(i) for i in ids[:-1]] + [token(ids[-1], finish="length")])
    assert joined(pieces, "answer") == TOKENIZER.decode(ids)


def test_garbage_is_told_before_it_ends():
  bad = next(i for i in range(TOKENIZER.vocab_size) if TOKENIZER.decode([i]) == "\ufffd")
  pieces, _ = written([token(bad)] * 60)
  assert 40 < len(joined(pieces, "answer")) <= 60


@pytest.mark.parametrize("stop,expected", [
    (["lo w"], "Hel"), (["世界"], "Hello w "), (["nowhere", "w 世"], "Hello "), (["Hello w 世界!!"], "Hello w 世界! aab"), (["o", "llo"], "He"),
    (["aab"], "Hello w 世界! "), ([], "Hello w 世界! aab")])
def test_stop_texts_cut_across_tokens(stop, expected):
  ids = TOKENIZER.encode("Hello w 世界! aab")
  pieces, writer = written([token(i) for i in ids] + [token(END, finish="stop")], stop)
  assert joined(pieces, "answer") == expected and writer.finish == "stop" and writer.add(token(ids[0])) == []
  shown = list(itertools.accumulate(p.text for p in pieces))
  assert all(expected.startswith(text) for text in shown)  # what was shown is never taken back


def test_stop_texts_do_not_end_a_thought():
  ids = TOKENIZER.encode("a;b")
  pieces, writer = written([token(i, "think") for i in ids] + [token(i) for i in ids], [";", "b"])
  assert (joined(pieces, "think"), joined(pieces, "answer"), writer.finish) == ("a;b", "a", "stop")
