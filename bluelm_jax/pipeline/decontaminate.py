"""Finds training texts and images that stand in evaluation sets.

A text is contaminated if it shares an n-gram with an evaluation item: 13 words (GPT-3, Brown et al. 2020, appendix C); in
Chinese, whose words have about 1.5 characters, 20 characters (ours). A shorter item must stand in it whole, if it has 8 words at least.
"""

from typing import NamedTuple, Sequence

import numpy as np

from bluelm_jax.pipeline import dedup
from bluelm_jax.pipeline import files
from bluelm_jax.pipeline import language
from bluelm_jax.pipeline import tokens

_LONG, _LONG_HAN, _SHORTEST = 13, 20, 8
IMAGE_BITS = 4  # hashes that differ in no more bits are of the same image


class Tables(NamedTuple):
  """What must not occur: n -> sorted n-gram hashes, and image hashes uint64 [I]."""

  ngrams: dict[int, np.ndarray]
  images: np.ndarray


def tables(texts: Sequence[str], images: Sequence[bytes] = ()) -> Tables:
  """Of evaluation items."""
  by_size: dict[int, list[str]] = {}
  words = tokens.words(texts)
  for text, count in zip(texts, np.diff(words.starts)):
    size = min(int(count), _LONG_HAN if language.han_share(text) > 0.3 else _LONG)
    if size >= _SHORTEST:
      by_size.setdefault(size, []).append(text)
  ngrams = {n: np.unique(tokens.ngrams(tokens.words(group), n)[0]) for n, group in sorted(by_size.items())}
  return Tables(ngrams, np.unique(np.array([dedup.image_hash(image) for image in images], np.uint64)))


def save(path: str, found: Tables) -> None:
  files.write_arrays(path, images=found.images, **{str(n): table for n, table in found.ngrams.items()})


def load(path: str) -> Tables:
  arrays = files.read_arrays(path)
  return Tables({int(n): arrays[n] for n in arrays.files if n != "images"}, arrays["images"])


def contaminated(words: tokens.Words, found: Tables) -> np.ndarray:
  """bool [D]: which texts share an n-gram with an evaluation item."""
  result = np.zeros(len(words.starts) - 1, bool)
  for n, table in found.ngrams.items():
    grams, starts = tokens.ngrams(words, n)
    at = np.searchsorted(table, grams)
    hits = np.flatnonzero(table[np.minimum(at, len(table) - 1)] == grams)
    result[np.searchsorted(starts, hits, side="right") - 1] = True
  return result


def image_contaminated(hashes: Sequence[int], found: Tables) -> bool:
  """Whether one of the images looks like one of an evaluation set."""
  return any(len(found.images) and dedup.distance(found.images, np.uint64(h)).min() <= IMAGE_BITS for h in hashes)
