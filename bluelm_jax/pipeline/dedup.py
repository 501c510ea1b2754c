"""Finds copies: equal texts, near copies by MinHash (Broder 1997) with banding, and images that look the same.

Texts are sets of 5-grams of words. 128 permutations in 20 bands of 6 rows (the last 8 only verify) find pairs of Jaccard
similarity 0.8 with probability 0.997 and 0.9 with 1.000; a pair found by a band counts if its whole signature agrees.
"""

import cv2
import numpy as np
import rensa

from bluelm_jax.data import images
from bluelm_jax.pipeline import tokens

PERMUTATIONS, BANDS, ROWS, SHINGLE = 128, 20, 6, 5
IMAGE_BANDS = 8  # bytes of an image's hash: two hashes that differ in fewer bits share one of them


def signatures(words: tokens.Words) -> np.ndarray:
  """MinHash signatures, uint32 [D, PERMUTATIONS]; texts under SHINGLE words all have the same."""
  grams, starts = tokens.ngrams(words, SHINGLE)
  if len(starts) == 1:
    return np.zeros((0, PERMUTATIONS), np.uint32)
  rows = rensa.RMinHash.digest_matrix_from_flat_token_hashes(grams, starts.astype(np.uint64), PERMUTATIONS, 0).to_rows()
  return np.array(rows, np.uint32)


def band_keys(found: np.ndarray, band: int) -> np.ndarray:
  """uint64 [D]: equal where all rows of a band are."""
  total = np.zeros(len(found), np.uint64)
  for row in range(band * ROWS, band * ROWS + ROWS):
    total = tokens.mix(total * np.uint64(31) + found[:, row].astype(np.uint64) + np.uint64(row))
  return total


def similarity(a: np.ndarray, b: np.ndarray) -> np.ndarray:
  """Estimated Jaccard similarity of pairs of signatures, float [P]; they may be cut to their low bits (Li and König 2010)."""
  chance = 2.0 ** -(8 * a.dtype.itemsize)
  return ((a == b).mean(axis=1) - chance) / (1 - chance)


def pairs(keys: np.ndarray) -> np.ndarray:
  """Index pairs [P, 2] of equal keys: each with the one before it and with the first, in the order given."""
  order = np.argsort(keys, kind="stable")
  same = keys[order][1:] == keys[order][:-1]
  previous = np.stack([order[:-1][same], order[1:][same]], 1)
  start = np.maximum.accumulate(np.where(np.concatenate([[True], ~same]), np.arange(len(keys)), 0)) if len(keys) else np.zeros(0, int)
  first = np.stack([order[start[1:]][same], order[1:][same]], 1)
  return np.unique(np.concatenate([previous, first]), axis=0)


def all_pairs(keys: np.ndarray) -> np.ndarray:
  """All index pairs [P, 2] of equal keys; for few, since they grow with the square of a key's frequency."""
  order = np.argsort(keys, kind="stable")
  groups = np.split(order, np.flatnonzero(np.diff(keys[order])) + 1)
  found = [np.stack([g[a], g[b]], 1) for g in groups for a, b in [np.triu_indices(len(g), 1)]]
  return np.concatenate(found)


def clusters(ids: np.ndarray, edges: np.ndarray) -> np.ndarray:
  """For each of the sorted ids, the number of its connected component; edges are pairs of ids [P, 2]."""
  from scipy import sparse  # slow import, for one worker
  from scipy.sparse import csgraph

  at = np.searchsorted(ids, edges)
  graph = sparse.coo_array((np.ones(len(at), np.int8), (at[:, 0], at[:, 1])), shape=(len(ids), len(ids)))
  return csgraph.connected_components(graph, directed=False)[1]


def copies(ids: np.ndarray, edges: np.ndarray, sizes: np.ndarray) -> np.ndarray:
  """The ids to leave out: of every cluster all but the longest, the first of equally long ones."""
  if not len(edges):
    return np.zeros(0, ids.dtype)
  label = clusters(ids, edges)
  order = np.lexsort((ids, -sizes, label))
  kept = np.concatenate([[True], label[order][1:] != label[order][:-1]])
  return np.sort(ids[order][~kept])


def image_hash(data: bytes) -> int:
  """The perceptual hash of an image, 64 bits: signs of low frequencies (pHash, Zauner 2010), after resizing to 32 x 32.

  Raises:
    ValueError: not a readable image.
  """
  grey = cv2.cvtColor(images.decode(data), cv2.COLOR_RGB2GRAY)
  low = cv2.dct(cv2.resize(grey, (32, 32), interpolation=cv2.INTER_AREA).astype(np.float64))[:8, :8]
  bits = (low > np.median(low)).ravel()
  return int(np.packbits(bits).view(">u8")[0])


def distance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
  """Bits by which hashes differ."""
  return np.bitwise_count(np.bitwise_xor(a, b))
