"""Which of the right paths of one question are kept."""

from typing import Sequence

import numpy as np

from bluelm_jax.pipeline import dedup
from bluelm_jax.pipeline import tokens


def choose(texts: Sequence[str], keep: int, similarity: float, seed: int) -> tuple[list[int], list[int]]:
  """(indices kept, indices that nearly copy another); what is in neither is surplus.

  Of near copies (MinHash of 5-grams of words) the first in an order drawn by content and seed stays. Of the rest, each next one kept
  is the least like those kept before.
  """
  words = tokens.words(texts)
  keys = tokens.keys(words)
  place = np.argsort(tokens.mix(keys ^ tokens.mix(np.array([seed + 1], np.uint64))), kind="stable")
  found = dedup.signatures(words)
  size = np.diff(words.starts)
  alike = np.stack([dedup.similarity(np.broadcast_to(row, found.shape), found) for row in found]) if len(texts) else np.zeros((0, 0))
  short = size < dedup.SHINGLE  # these have no 5-grams, and all the same signature
  alike[short] = alike[:, short] = 0
  alike[keys[:, None] == keys[None]] = 1
  apart: list[int] = []
  for i in place.tolist():
    if not any(alike[i, j] >= similarity for j in apart):
      apart.append(i)
  copies = sorted(set(range(len(texts))) - set(apart))
  kept = apart[:1]
  while len(kept) < min(keep, len(apart)):
    kept.append(min((i for i in apart if i not in kept), key=lambda i: alike[i, kept].max()))
  return sorted(kept), copies
