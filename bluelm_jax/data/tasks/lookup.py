"""Notes scattered through a long text and asked for at its end: does a model find what stands far back?

The text is real, a note is a letter and a number drawn anew, so nothing but the text says it.
"""

import string
from typing import Sequence

import numpy as np

MOST = len(string.ascii_uppercase)  # notes in a text
MOST_TOKENS = 64  # of a note and its turns, whatever the tokenizer
_NOTE = {"en": " (note {}) ", "zh": "(记 {})"}
_ASK = {"en": "Note {}?", "zh": "记 {}?"}


def conversation(text: str, notes: int, language: str | None, rng: np.random.Generator) -> list[dict]:
  """A user turn with the text and its notes, and every note asked for, a turn each, in any order."""
  language = language if language in _NOTE else "en"
  labels = rng.choice(list(string.ascii_uppercase), notes, replace=False)
  words = [f"{label}{rng.integers(10, 100)}" for label in labels]
  messages = []
  for i in rng.permutation(notes):
    ask = _ASK[language].format(labels[i])
    messages += [{"role": "user", "content": ask}, {"role": "assistant", "content": words[i]}]
  messages[0]["content"] = f"{_written(text, np.sort(rng.integers(len(text) + 1, size=notes)), words, language)}\n{messages[0]['content']}"
  return messages


def _written(text: str, places: Sequence[int], words: Sequence[str], language: str) -> str:
  parts, at = [], 0
  for place, word in zip(places, words):
    parts += [text[at:place], _NOTE[language].format(word)]
    at = place
  return "".join([*parts, text[at:]])
