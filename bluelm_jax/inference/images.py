"""Visual tokens on the device: each tile is encoded once for one version of the weights, whoever shows it.

Shapes: C places for tiles, T tiles encoded at once, N tokens a tile, D width.
"""

import collections
import functools
import hashlib
from typing import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from bluelm_jax.data.batch import Example
from bluelm_jax.inference import weights
from bluelm_jax.sharding import rules

_BATCHES = (1, 4, 16)  # tiles encoded at once


def digests(prompt: Example) -> list[bytes]:
  """What tells each tile of a prompt from every other: its pixels, and its place in its image."""
  return [
      hashlib.blake2b(np.ascontiguousarray(tile).tobytes() + bytes([int(place)]), digest_size=16).digest()
      for tile, place in zip(prompt.tiles, prompt.tile_places, strict=True)]


class ImagePool:
  """Places for `capacity` tiles; those held by a prompt stay, others go when their places are wanted, the oldest first."""

  def __init__(self, model, capacity: int, mesh=None):
    self.capacity = capacity
    self._tokens_per_tile, self._side = model.config.tokens_per_tile, model.config.anyres.tile_size
    D = model.config.decoder.embed_dim
    self.visual_XD = jnp.zeros((capacity * self._tokens_per_tile, D), model.config.decoder.dtype, device=rules.replicated(mesh) if mesh else None)
    self._encode, self._mesh = jax.jit(functools.partial(_encode, model), donate_argnames="visual_XD"), mesh
    self.flush()
    self.encoded = 0

  def flush(self) -> None:
    """Forgets all: the weights have changed. Nothing may be held."""
    self._place_of: collections.OrderedDict[bytes, int] = collections.OrderedDict()
    self._holders: collections.Counter[bytes] = collections.Counter()
    self._free = list(range(self.capacity))
    self._unseen: list[tuple[np.ndarray, int, int]] = []  # tile, its place in its image, its place here

  def hold(self, tiles: dict[bytes, tuple[np.ndarray, int]]) -> dict[bytes, int] | None:
    """The places of tiles, now held, and encoded by the next `encode`; None where there is no room for them now.

    Args:
      tiles: digest -> (uint8 [H, W, 3], its place in its image).
    """
    missing = [d for d in tiles if d not in self._place_of]
    idle = [d for d in self._place_of if not self._holders[d] and d not in tiles]
    if len(missing) > len(self._free) + len(idle):
      return None
    for digest in idle[: max(0, len(missing) - len(self._free))]:
      self._free.append(self._place_of.pop(digest))
    for digest in missing:
      self._place_of[digest] = self._free.pop()
    for digest in tiles:
      self._place_of.move_to_end(digest)
      self._holders[digest] += 1
    self._unseen += [(*tiles[d], self._place_of[d]) for d in missing]
    return {d: self._place_of[d] for d in tiles}

  def release(self, tiles: Sequence[bytes]) -> None:
    for digest in tiles:
      self._holders[digest] -= 1
      assert self._holders[digest] >= 0
      if not self._holders[digest]:
        del self._holders[digest]

  def encode(self, params) -> None:
    """Encodes the tiles held since the last time, those of many prompts together."""
    self.encoded += len(self._unseen)
    while self._unseen:
      size = next((b for b in _BATCHES if b >= len(self._unseen)), _BATCHES[-1])
      batch, self._unseen = self._unseen[:size], self._unseen[size:]
      self._write(params, size, batch)

  def warm_up(self, params) -> None:
    """Compiles what `encode` may run."""
    for size in _BATCHES:
      self._write(params, size, [])

  def _write(self, params, size, batch) -> None:
    pixels = np.zeros((size, self._side, self._side, 3), np.uint8)
    of_image, into = np.zeros(size, np.int32), np.full(size, self.capacity, np.int32)  # padding goes nowhere
    for i, (tile, place, slot) in enumerate(batch):
      pixels[i], of_image[i], into[i] = tile, place, slot
    with rules.within(self._mesh):
      self.visual_XD = self._encode(params, self.visual_XD, pixels, of_image, into)


def _encode(model, params, visual_XD, pixels_THWC, tile_places_T, into_T):
  tokens = model.apply({"params": weights.whole(params)}, pixels_THWC[None], tile_places_T[None], method="encode_tiles")[0]
  N = tokens.shape[0] // pixels_THWC.shape[0]
  places = into_T[:, None] * N + jnp.arange(N)
  return rules.constrain(visual_XD.at[places.reshape(-1)].set(tokens.astype(visual_XD.dtype), mode="drop"), None, None)
