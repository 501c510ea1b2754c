"""Examples longer than a row: what is left of them, token by token."""

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from bluelm_jax.data import overlong
from bluelm_jax.data.batch import Example

N = 4  # tokens a tile


def example(parts, loss=None):
  """Of texts (their number of tokens) and images (the places of their tiles), with the markers of the chat format."""
  vision, places = [], []
  for part in parts:
    if isinstance(part, int):
      vision += [-1] * part
      continue
    vision += [-1]
    for place in part:
      vision += [-1, *range(len(places) * N, (len(places) + 1) * N)]
      places.append(place)
    vision += [-1]
  n = len(vision)
  weights = np.ones(n, np.float32) if loss is None else np.isin(np.arange(n), loss).astype(np.float32)
  tiles = np.arange(len(places), dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 3), np.uint8)
  return Example(np.arange(n, dtype=np.int32), np.arange(1, n + 1, dtype=np.int32), weights, np.array(vision, np.int32), tiles, np.array(places, np.int32), 3)


TILE = 7  # tokens of an image of one tile, markers included
CASES = [  # parts, length, slots, policy, (tokens, tiles) of the pieces
    ([10], 10, 0, "drop", [(10, 0)]),
    ([11], 10, 0, "drop", []),
    ([11], 10, 0, "truncate", [(10, 0)]),
    ([25], 10, 0, "split", [(10, 0), (10, 0), (5, 0)]),
    ([(0,), 8], 10, 2, "truncate", [(10, 1)]),
    ([(0,), 8], 10, 2, "split", [(10, 1), (5, 0)]),
    ([(0,), 8], 6, 2, "truncate", []),  # <im_end> would be cut off
    ([3, (0,), 8], 9, 2, "split", [(3, 0), (9, 1), (6, 0)]),
    ([5, (0,)], 10, 2, "truncate", [(5, 0)]),  # the image does not fit: the text before it
    ([5, (0,)], 10, 2, "split", [(5, 0), (TILE, 1)]),
    ([(1, 2), 3], 10, 2, "split", []),  # 12 tokens of one image
    ([(1, 2), 3], 10, 2, "truncate", []),
    ([2, (0,), (0,), (0,), 2], 100, 2, "split", [(2 + 2 * TILE, 2), (TILE + 2, 1)]),  # slots cut, not length
    ([2, (0,), (0,), (0,), 2], 100, 2, "drop", []),
    ([(1, 2, 3)], 100, 2, "split", []),
    ([(0, 1, 2), (0, 1, 2)], 20, 9, "split", [(17, 3), (17, 3)]),
    ([(0,), (0,)], 10, 9, "split", [(TILE, 1), (TILE, 1)]),
]


@pytest.mark.parametrize("parts,length,slots,policy,expected", CASES)
def test_worked_cases(parts, length, slots, policy, expected):
  found = overlong.pieces(example(parts), length, slots, N, policy)
  assert [(len(p.tokens), len(p.tiles)) for p in found] == expected


part = st.one_of(st.integers(1, 30), st.sampled_from([(0,), (1, 2), (0, 1, 2), (1,)]))


@hypothesis.settings(max_examples=300, deadline=None)
@hypothesis.given(st.lists(part, min_size=1, max_size=6), st.integers(20, 40), st.integers(3, 5))
def test_pieces_put_together_are_the_example(parts, length, slots):
  whole = example(parts)
  found = overlong.pieces(whole, length, slots, N, "split")
  assert found  # no image here exceeds 17 tokens and 3 tiles
  for name in ("tokens", "targets", "loss_weights", "tiles", "tile_places"):
    assert np.array_equal(np.concatenate([getattr(p, name) for p in found]), getattr(whole, name)), name
  tiles_before = 0
  for p in found:
    assert len(p.tokens) <= length and len(p.tiles) <= slots and p.source == 3 and p.vision_index.dtype == np.int32
    own = p.vision_index[p.vision_index >= 0]
    assert np.array_equal(own, np.arange(len(p.tiles) * N))  # all of its tiles and no others
    start = p.tokens[0]
    assert np.array_equal(np.where(p.vision_index >= 0, p.vision_index + tiles_before * N, -1), whole.vision_index[start : start + len(p.tokens)])
    tiles_before += len(p.tiles)
  first = overlong.pieces(whole, length, slots, N, "truncate")
  assert len(first) == 1 and np.array_equal(first[0].tokens, found[0].tokens)


def test_pieces_without_anything_to_learn_are_left_out():
  assert overlong.pieces(example([30], loss=[25]), 10, 0, N, "truncate") == []
  assert [p.tokens[0] for p in overlong.pieces(example([30], loss=[25]), 10, 0, N, "split")] == [20]


def test_markers_stay_with_their_image():
  first, second = overlong.pieces(example([9, (0,), 3]), 10, 1, N, "split")
  assert first.tokens.tolist() == list(range(9)) and second.vision_index.tolist() == [-1, -1, 0, 1, 2, 3, -1, -1, -1, -1]
