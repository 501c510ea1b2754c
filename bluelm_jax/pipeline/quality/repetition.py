"""Gopher's repetition rules (Rae et al. 2021, arXiv 2112.11446, table A1), over a batch at once.

An n-gram has n words; in Chinese 1.5 n characters, since a word has about that many (ours). D texts, M n-grams.
"""

from typing import Sequence

import numpy as np

from bluelm_jax.pipeline import tokens

_TOP = {2: 0.20, 3: 0.18, 4: 0.16}  # largest share of characters in the most frequent n-gram
_DUPLICATE = {5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10}  # and in n-grams that have occurred before


def broken(texts: Sequence[str], languages: Sequence[str], words: tokens.Words) -> list[str]:
  """The first rule that each text breaks, or ""."""
  result = [_lines(text) for text in texts]
  chinese = np.array([language == "zh" for language in languages], bool)
  for texts_at, characters in ((np.flatnonzero(~chinese), 1.0), (np.flatnonzero(chinese), 1.5)):
    some = tokens.take(words, texts_at)
    found = [""] * len(texts_at)
    _duplicates(found, some, characters)
    _tops(found, some, characters)
    for i, rule in zip(texts_at, found):
      result[i] = result[i] or rule
  return result


def _duplicates(result: list[str], words: tokens.Words, scale: float) -> None:
  share = duplicate_share(words, round(5 * scale))
  _note(result, np.flatnonzero(share > _DUPLICATE[5]), "gopher_duplicate_5_grams")
  # What longer ones cover, the 5-grams inside them cover too: few texts need a second look.
  near = np.flatnonzero((share > min(_DUPLICATE.values())) & (share <= _DUPLICATE[5]))
  for n in range(6, 11):
    share = duplicate_share(tokens.take(words, near), round(n * scale))
    _note(result, near[share > _DUPLICATE[n]], f"gopher_duplicate_{n}_grams")


def _tops(result: list[str], words: tokens.Words, scale: float) -> None:
  size = np.maximum(_sums(words.lengths, words.starts), 1)
  covered, times = _top(words, round(2 * scale))
  _note(result, np.flatnonzero(covered / size > _TOP[2]), "gopher_top_2_gram")
  for n in (3, 4):  # none is more frequent than the most frequent 2-gram, nor longer than n of the longest words
    near = np.flatnonzero(times * round(n * scale) * _longest(words) > _TOP[n] * size)
    covered, _ = _top(tokens.take(words, near), round(n * scale))
    _note(result, near[covered / size[near] > _TOP[n]], f"gopher_top_{n}_gram")


def _note(result: list[str], texts: np.ndarray, rule: str) -> None:
  for i in texts:
    result[i] = result[i] or rule


def _longest(words: tokens.Words) -> np.ndarray:
  """The longest word's characters [D]."""
  result = np.zeros(len(words.starts) - 1, np.int64)
  np.maximum.at(result, np.repeat(np.arange(len(result)), np.diff(words.starts)), words.lengths)
  return result


def _groups(words: tokens.Words, n: int):
  """Equal n-grams of a text together: (order [M], starts of the groups in it, their sizes, text of each n-gram [M], its first word [M])."""
  grams, starts = tokens.ngrams(words, n)
  text = np.repeat(np.arange(len(starts) - 1), np.diff(starts))
  key = grams ^ tokens.mix(text.astype(np.uint64) + np.uint64(1))
  order = np.argsort(key)
  new = np.flatnonzero(np.append(True, key[order][1:] != key[order][:-1])[: len(key)])
  return order, new, np.diff(np.append(new, len(key))), text, words.starts[text] + np.arange(len(key)) - starts[text]


def _top(words: tokens.Words, n: int) -> tuple[np.ndarray, np.ndarray]:
  """Characters [D] in the most frequent n-gram, the longest of equally frequent ones, and its frequency [D]; 0 if none occurs twice."""
  order, new, times, text, at = _groups(words, n)
  again = np.flatnonzero(times > 1)
  first, times = order[new[again]], times[again]
  size = np.append(0, np.cumsum(words.lengths))
  covered = times * (size[at[first] + n] - size[at[first]])
  best = np.lexsort((covered, times, text[first]))
  last = np.append(text[first][best][1:] != text[first][best][:-1], True)[: len(best)]
  result = np.zeros((2, len(words.starts) - 1), np.int64)
  result[:, text[first][best[last]]] = covered[best[last]], times[best[last]]
  return result[0], result[1]


def _duplicate(words: tokens.Words, n: int) -> np.ndarray:
  """Characters [D] in n-grams that have occurred before in their text, each counted once where they overlap."""
  order, new, times, _, at = _groups(words, n)
  again = np.repeat(times > 1, times)
  if not again.any():
    return np.zeros(len(words.starts) - 1, np.int64)
  again[np.repeat(np.minimum.reduceat(order, new), times) == order] = False  # the first occurrence
  begins = at[order[again]]
  change = np.bincount(begins, minlength=len(words.hashes) + 1) - np.bincount(begins + n, minlength=len(words.hashes) + 1)
  return _sums(np.where(np.cumsum(change)[:-1] > 0, words.lengths, 0), words.starts)


def duplicate_share(words: tokens.Words, n: int) -> np.ndarray:
  """Share [D] of each text's characters that stand in n-grams which have occurred before in it."""
  return _duplicate(words, n) / np.maximum(_sums(words.lengths, words.starts), 1)


def _sums(values: np.ndarray, starts: np.ndarray) -> np.ndarray:
  total = np.append(0, np.cumsum(values))
  return total[starts[1:]] - total[starts[:-1]]


def _lines(text: str) -> str:
  for name, pieces in (("line", text.split("\n")), ("paragraph", text.split("\n\n"))):
    pieces = [p for p in (p.strip() for p in pieces) if p]
    unique = set(pieces)
    if len(unique) == len(pieces):
      continue
    if 1 - len(unique) / len(pieces) > 0.3:
      return f"gopher_duplicate_{name}s"
    if 1 - sum(map(len, unique)) / sum(map(len, pieces)) > 0.2:
      return f"gopher_duplicate_{name}_characters"
  return ""
