"""What leaves the data room: Example (one item) and PackedBatch (one step).

Shapes: n tokens of an example, t its tiles, B rows, S sequence, R row groups, T tile slots of a group, K tokens kept.
"""

from typing import NamedTuple

import numpy as np


class Example(NamedTuple):
  """One tokenised item; targets are already shifted.

  Attributes:
    tokens: int32 [n].
    targets: int32 [n], the next token.
    loss_weights: float32 [n]; 0 where the target is not to be learnt.
    vision_index: int32 [n], into this example's own visual tokens; -1 for text.
    tiles: uint8 [t, H, W, 3].
    tile_places: int32 [t], where each tile lies in its image; see `anyres.tile_image`.
    source: index of the source in the mixture.
    starts: where its segments begin; one has several where documents share a row by plan.
  """

  tokens: np.ndarray
  targets: np.ndarray
  loss_weights: np.ndarray
  vision_index: np.ndarray
  tiles: np.ndarray
  tile_places: np.ndarray
  source: int = 0
  starts: tuple[int, ...] = (0,)


class Top(NamedTuple):
  """What is stored of a teacher's distribution at every position; zeros where there is no loss.

  Attributes:
    log_probs: float16 [B, S, K + 1], of its K likeliest tokens and of all others together.
    ids: [B, S, K], of these tokens, in the smallest unsigned integers that hold the vocabulary.
  """

  log_probs: np.ndarray
  ids: np.ndarray


class PackedBatch(NamedTuple):
  """Several examples a row; every objective reads this struct.

  Attributes:
    tokens: int32 [B, S]; image positions hold the image token.
    targets: int32 [B, S], next token of the same segment.
    loss_weights: float32 [B, S]; 0 on padding, prompts, image positions and segment ends.
    segment_ids: int32 [B, S], 1.. per row; 0 = padding.
    positions: int32 [B, S]; restart in every segment.
    tiles: uint8 [R, T, H, W, 3], the tiles of each row group (the rows of one data-parallel rank).
    vision_index: int32 [B, S], which visual token of its own group a position takes; -1 for text.
    tile_places: int32 [R, T], where each tile lies in its image: 0 = all of it, 1.. = a cell of the
      largest grid, row by row. An adapter without a tile table does not read it.
    sources: int32 [B, S], index of the source in the mixture, by which losses are told apart; 0 on padding too.
    teacher: what a stored teacher says of these rows; None where a stage reads none.
  """

  tokens: np.ndarray
  targets: np.ndarray
  loss_weights: np.ndarray
  segment_ids: np.ndarray
  positions: np.ndarray
  tiles: np.ndarray
  vision_index: np.ndarray
  tile_places: np.ndarray
  sources: np.ndarray
  teacher: Top | None = None
