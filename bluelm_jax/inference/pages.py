"""Which pages are free, held or kept: counts of holders, and full pages that a later prompt may share.

Host side; the pages themselves are on the device. Page 0 belongs to no sequence: padding writes there.
"""

import collections
import hashlib
from typing import Sequence

import numpy as np


class PagePool:
  """`total` pages of `size` tokens; a page is free, or held by one or more sequences, or held by none and kept by its key."""

  def __init__(self, total: int, size: int):
    self.total, self.size = total, size
    self._holders = np.zeros(total + 1, np.int32)
    self._free = list(range(total, 0, -1))
    self._by_key: dict[bytes, int] = {}
    self._key_of: dict[int, bytes] = {}
    self._idle: collections.OrderedDict[int, None] = collections.OrderedDict()  # kept, held by none; the oldest first

  @property
  def free(self) -> int:
    """Pages that can be had: free ones and those that are only kept."""
    return len(self._free) + len(self._idle)

  def take(self, count: int) -> list[int] | None:
    """New pages, held once each, or None where there are too few; kept pages that waited longest are given up."""
    if count > self.free:
      return None
    while len(self._free) < count:
      page, _ = self._idle.popitem(last=False)
      self._forget(page)
      self._free.append(page)
    pages = [self._free.pop() for _ in range(count)]
    self._holders[pages] = 1
    return pages

  def hold(self, pages: Sequence[int]) -> None:
    """One more holder of each."""
    for page in pages:
      self._holders[page] += 1
      self._idle.pop(page, None)

  def release(self, pages: Sequence[int]) -> None:
    """One holder less of each; the last of a sequence's pages is the first to go."""
    for page in reversed(pages):
      self._holders[page] -= 1
      assert self._holders[page] >= 0, f"page {page} was released twice"
      if self._holders[page] == 0:
        if page in self._key_of:
          self._idle[page] = None
        else:
          self._free.append(page)

  def shared(self, page: int) -> bool:
    """Whether writing to it would touch somebody else's tokens."""
    return self._holders[page] > 1 or page in self._key_of

  def find(self, keys: Sequence[bytes]) -> list[int]:
    """The pages that hold the longest known beginning of a text, held once more."""
    pages = []
    for key in keys:
      if key not in self._by_key:
        break
      pages.append(self._by_key[key])
    self.hold(pages)
    return pages

  def keep(self, pages: Sequence[int], keys: Sequence[bytes]) -> None:
    """Makes full pages known by their keys; of two pages with one key the first stays known."""
    for page, key in zip(pages, keys, strict=True):
      if key not in self._by_key and page not in self._key_of:
        self._by_key[key], self._key_of[page] = page, key

  def flush(self) -> None:
    """Forgets every key: what the pages hold was made by other weights."""
    self._by_key.clear()
    self._key_of.clear()
    self._free += self._idle
    self._idle.clear()

  def _forget(self, page: int) -> None:
    del self._by_key[self._key_of.pop(page)]


def page_keys(tokens: np.ndarray, vision_index: np.ndarray, tile_digests: Sequence[bytes], tokens_per_tile: int, size: int) -> list[bytes]:
  """A key for each full page of a text: it tells the tokens and images of the page and of all before it."""
  keys, key = [], b""
  for start in range(0, len(tokens) - size + 1, size):
    index = vision_index[start : start + size]
    seen = index[index >= 0]
    images = b"".join(tile_digests[t] for t in np.unique(seen // tokens_per_tile))
    places = np.where(index >= 0, index % tokens_per_tile, -1).astype(np.int32).tobytes()
    key = hashlib.blake2b(key + np.asarray(tokens[start : start + size], np.int32).tobytes() + places + images, digest_size=16).digest()
    keys.append(key)
  return keys
