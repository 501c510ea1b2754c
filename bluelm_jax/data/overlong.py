"""What becomes of an example that is longer than a row, or has more tiles than a rank's slots.

Shapes: n tokens of an example, t its tiles.
"""

import numpy as np

from bluelm_jax.data.batch import Example

POLICIES = ("drop", "truncate", "split")
_BEFORE, _AFTER = 2, 1  # markers that stay with an image: <im_start> and <tile_0>, <im_end>
_WITHIN = 1  # markers between two tiles of an image; there are three between two images


def pieces(example: Example, length: int, tile_slots: int, tokens_per_tile: int, policy: str) -> list[Example]:
  """The example in pieces that fit; itself if it does, none where its images do not.

  "drop" has no pieces, "truncate" the first and "split" all; no image is cut, and a piece in which nothing is to be
  learnt is left out. A token whose target lies in the next piece keeps it.
  """
  if len(example.tokens) <= length and len(example.tiles) <= tile_slots:
    return [example]
  assert example.starts == (0,), "rows that are planned are no longer than those they are for"
  if policy == "drop":
    return []
  allowed = np.ones(len(example.tokens) + 1, bool)  # a cut before each token
  visual = np.flatnonzero(example.vision_index >= 0)
  for image in np.split(visual, np.flatnonzero(np.diff(visual) > _WITHIN + 1) + 1) if len(visual) else ():
    allowed[max(image[0] - _BEFORE + 1, 1) : image[-1] + _AFTER + 1] = False
  tile_n = np.where(example.vision_index >= 0, example.vision_index // tokens_per_tile, -1)
  found, start, first = [], 0, 0
  while start < len(example.tokens):
    tiles = tile_n[start : start + length + 1]
    fits = start + int(np.argmax(np.append(tiles - first >= tile_slots, True)))  # a tile too many begins here, or the end does
    cuts = np.flatnonzero(allowed[start + 1 : min(fits, start + length, len(example.tokens)) + 1])
    if not len(cuts):
      return []
    end = start + 1 + int(cuts[-1])
    last = max(first, int(tile_n[start:end].max()) + 1)
    found.append(_piece(example, start, end, first, last, tokens_per_tile))
    start, first = end, last
    if policy == "truncate":
      break
  return [piece for piece in found if piece.loss_weights.any()]


def _piece(example, start, end, first, last, tokens_per_tile) -> Example:
  part = {name: getattr(example, name)[start:end] for name in ("tokens", "targets", "loss_weights", "vision_index")}
  part["vision_index"] = np.where(part["vision_index"] >= 0, part["vision_index"] - first * tokens_per_tile, -1).astype(np.int32)
  return example._replace(**part, tiles=example.tiles[first:last], tile_places=example.tile_places[first:last])
