"""Words of a batch of texts as numbers, and their n-grams, for rules that count or compare them.

A word is a run of letters and digits in lower case; every Han character is a word. All texts of a batch lie in one array, so
that numpy does the counting. D texts, N words, M n-grams.
"""

import hashlib
import re
from typing import NamedTuple, Sequence

import numpy as np

_WORD = re.compile("[\u3400-\u4dbf\u4e00-\u9fff]|[^\\W_\u3400-\u4dbf\u4e00-\u9fff]+")
_ASCII = str.maketrans({chr(i): chr(i).lower() if chr(i).isalnum() else " " for i in range(128)})  # the same, faster
_FACTOR = np.uint64(0x9E3779B97F4A7C15)


class Words(NamedTuple):
  """The words of D texts: `hashes` uint64 [N], `lengths` int64 [N] in characters, `starts` int64 [D + 1] into both."""

  hashes: np.ndarray
  lengths: np.ndarray
  starts: np.ndarray


def _hash(text: str) -> int:
  return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


class _Hashes(dict):
  """Word -> 64-bit hash that is the same in every process."""

  def __missing__(self, word: str) -> int:
    if len(self) > 1_000_000:
      self.clear()
    self[word] = value = _hash(word)
    return value


_hashes = _Hashes()


def split_words(text: str) -> list[str]:
  """The words of a text."""
  return text.translate(_ASCII).split() if text.isascii() else _WORD.findall(text.lower())


def words(texts: Sequence[str]) -> Words:
  """The words of all texts."""
  split = [split_words(text) for text in texts]
  starts = np.cumsum([0, *map(len, split)])
  flat = [word for found in split for word in found]
  return Words(
      np.fromiter(map(_hashes.__getitem__, flat), np.uint64, len(flat)), np.fromiter(map(len, flat), np.int64, len(flat)), starts)


def take(found: Words, texts: np.ndarray) -> Words:
  """The words of some of the texts."""
  counts = np.diff(found.starts)[texts]
  at = np.repeat(found.starts[texts], counts) + _arange(counts)
  return Words(found.hashes[at], found.lengths[at], np.append(0, np.cumsum(counts)))


def mix(values: np.ndarray) -> np.ndarray:
  """A bijection of uint64 that spreads close values (the finaliser of splitmix64, Steele et al. 2014)."""
  values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
  values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
  return values ^ (values >> np.uint64(31))


def ngrams(found: Words, n: int) -> tuple[np.ndarray, np.ndarray]:
  """Hashes of all n-grams inside texts: (uint64 [M], starts [D + 1]); a text under n words has none."""
  hashes = np.zeros(max(len(found.hashes) - n + 1, 0), np.uint64)
  for i in range(n):
    hashes = hashes * _FACTOR + mix(found.hashes[i : i + len(hashes)])
  counts = np.diff(found.starts)
  inside = np.maximum(counts - n + 1, 0)
  at = np.repeat(found.starts[:-1], inside) + _arange(inside)
  return mix(hashes[at]), np.cumsum([0, *inside])


def _arange(counts: np.ndarray) -> np.ndarray:
  """0, 1, ... counts[0] - 1, 0, 1, ... counts[1] - 1, ..."""
  ends = np.cumsum(counts)
  return np.arange(ends[-1] if len(ends) else 0) - np.repeat(ends - counts, counts)


def keys(found: Words) -> np.ndarray:
  """One uint64 a text, equal where case, spaces and signs are the only difference: the key of exact duplicates."""
  place = mix((np.arange(len(found.hashes)) - np.repeat(found.starts[:-1], np.diff(found.starts)) + 1).astype(np.uint64))
  total = np.zeros(len(place) + 1, np.uint64)
  np.cumsum(mix(found.hashes + place * _FACTOR), out=total[1:])  # wraps around, and so does the difference
  return mix(total[found.starts[1:]] - total[found.starts[:-1]])


def exact_key(text: str) -> np.uint64:
  """The key of one text where signs matter and spaces do not."""
  return np.uint64(_hash("".join(text.split())))
