"""What is wrong with a path, whatever its answer: one function a rule, true where the rule is broken.

The limits of `language_other`, `loop` and `answer_leaked` are ours; the other limits are the config's.
"""

import re
from typing import Sequence

import numpy as np

from bluelm_jax.pipeline import language
from bluelm_jax.pipeline import tokens
from bluelm_jax.pipeline.quality import repetition
from bluelm_jax.pipeline.reasoning.replies import Path

_LEAK = re.compile(
    r"\b(?:given|provided|reference|expected) (?:answer|solution) (?:is|was|says|states)\b|\banswer (?:\w+ ){0,2}(?:given|provided) (?:is|was|to us)\b"
    r"|\baccording to the (?:answer key|reference|given answer|provided answer)|(?:参考|标准|给出的|给定的|提供的|题目的)答案(?:是|为|给|说|:|：)|答案已(?:经)?给出", re.IGNORECASE)
_LATIN = re.compile("[a-zA-Z]{3,}")
_RUN = re.compile(r"(.{1,24}?)\1{24,}", re.DOTALL)  # one piece 25 times in a row
_FEW = 8  # words that say nothing of the language
_LOOP = 13  # words; 20 Han characters


def truncated(path: Path) -> bool:
  return path.truncated


def thought_missing(path: Path) -> bool:
  return not path.thought


def thought_unclosed(path: Path) -> bool:
  return path.marks[0] > path.marks[1]


def thought_repeated(path: Path) -> bool:
  return max(path.marks) > 1


def answer_missing(path: Path) -> bool:
  return not path.answer


def answer_leaked(path: Path) -> bool:
  """The path speaks of an answer that it was shown."""
  return bool(_LEAK.search(f"{path.thought}\n{path.text}"))


def thought_short(tokens_in_thought: int, least: int) -> bool:
  return tokens_in_thought < least


def thought_long(tokens_in_thought: int, most: int) -> bool:
  return tokens_in_thought > most


def language_other(path: Path, asked: str) -> bool:
  """Chinese thought on an English question, or English on a Chinese one; a few words or formulas alone are of no language."""
  text = f"{path.thought}\n{path.text}"
  han, latin = len(language.HAN.findall(text)), len(_LATIN.findall(text))
  if asked not in ("zh", "en") or han + latin < _FEW:
    return False
  return latin > 2 * han if asked == "zh" else han > latin


def loops(texts: Sequence[str], languages: Sequence[str], words: tokens.Words) -> np.ndarray:
  """bool [D]: over 0.3 of the characters stand in long n-grams that have occurred before, or one piece comes 25 times in a row.

  Gopher's rules for pages are too strict for thoughts, which restate what they work on.
  """
  chinese = np.array([code == "zh" for code in languages], bool)
  share = np.where(chinese, *(repetition.duplicate_share(words, n) for n in (20, _LOOP)))
  return (share > 0.3) | np.array([bool(_RUN.search(text)) for text in texts], bool)


FORM = (truncated, thought_unclosed, thought_repeated, thought_missing, answer_missing, answer_leaked)  # of the path alone
