"""AnyRes: the published rule against independent code, and what tiling must preserve."""

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from bluelm_jax.data import anyres
from bluelm_jax.data import images
from bluelm_jax.models import presets
from bluelm_jax.models.config import AnyResConfig

sides = st.integers(1, 3000)
limits = st.integers(1, 5)


def llava_next(width, height, candidates):
  """LLaVA-NeXT's select_best_resolution, written from its definition: most effective pixels, then least waste."""
  ranked = []
  for w, h in candidates:
    scale = min(w / width, h / height)
    effective = min(max(round(width * scale), 1) * max(round(height * scale), 1), width * height)
    ranked.append((-effective, w * h - effective))
  return min(ranked)


@hypothesis.settings(max_examples=400, deadline=None)
@hypothesis.given(sides, sides, limits, limits)
def test_without_alpha_it_is_llava_next(width, height, max_rows, max_cols):
  size = 378
  rows, cols = anyres.select_grid(width, height, AnyResConfig(size, max_rows, max_cols, alpha=0.0))
  candidates = [(c * size, r * size) for r in range(1, max_rows + 1) for c in range(1, max_cols + 1)]
  w, h = anyres.fitted_size(width, height, rows, cols, size)
  effective = min(w * h, width * height)
  best = llava_next(width, height, candidates)
  assert (-effective, size * size * rows * cols - effective) == best


@hypothesis.settings(max_examples=300, deadline=None)
@hypothesis.given(sides, sides, st.floats(0, 0.5))
def test_alpha_gives_up_little_for_fewer_tiles(width, height, alpha):
  """A relaxed choice never needs more tiles than the strict one, and each relaxation costs at most alpha."""
  size = 100
  strict = anyres.select_grid(width, height, AnyResConfig(size, 4, 4, alpha=0.0))
  relaxed = anyres.select_grid(width, height, AnyResConfig(size, 4, 4, alpha=alpha))
  assert relaxed[0] * relaxed[1] <= strict[0] * strict[1]


@pytest.mark.parametrize("width,height,expected", [
    (1512, 1512, (4, 4)), (378, 378, (1, 1)), (378, 756, (2, 1)), (1134, 378, (1, 3)), (3000, 3000, (4, 4)), (1080, 2400, (4, 2)), (390, 390, (1, 1)), (400, 400, (2, 2))])
def test_worked_cases_of_the_3b_preset(width, height, expected):
  assert anyres.select_grid(width, height, presets.bluelm_2_5_3b().anyres) == expected


@hypothesis.settings(max_examples=60, deadline=None)
@hypothesis.given(st.integers(4, 400), st.integers(4, 400), st.booleans(), st.integers(0, 2**31))
def test_tiles_put_together_are_the_image(width, height, thumbnail, seed):
  config = AnyResConfig(32, 3, 4, alpha=0.1, thumbnail=thumbnail)
  image = np.random.default_rng(seed).integers(0, 255, (height, width, 3)).astype(np.uint8)
  tiles, (rows, cols), places = anyres.tile_image(image, config)
  extra = int(thumbnail and rows * cols > 1)
  assert len(tiles) == len(places) == rows * cols + extra and rows <= 3 and cols <= 4
  canvas = tiles[extra:].reshape(rows, cols, 32, 32, 3).transpose(0, 2, 1, 3, 4).reshape(rows * 32, cols * 32, 3)
  w, h = anyres.fitted_size(width, height, rows, cols, 32)
  assert w <= cols * 32 and h <= rows * 32 and (w == cols * 32 or h == rows * 32)
  assert abs(w / width - h / height) * min(width, height) <= 1 + 1e-9 or min(w, h) == 1  # aspect kept to a pixel
  assert np.array_equal(canvas[:h, :w], images.resize(image, w, h))
  assert (canvas[h:] == 127).all() and (canvas[:, w:] == 127).all()
  expected = [1 + r * 4 + c for r in range(rows) for c in range(cols)] if rows * cols > 1 else [0]
  assert places.tolist() == [0] * extra + expected


@pytest.mark.parametrize("width,height", [(300, 200), (130, 170), (90, 40), (40, 40)])
def test_the_thumbnail_shows_the_whole_image(width, height):
  smooth = images.resize(np.random.default_rng(0).integers(0, 255, (5, 6, 3)).astype(np.uint8), width, height)
  tiles, (rows, cols), _ = anyres.tile_image(smooth, AnyResConfig(32, 3, 4, thumbnail=True))
  w, h = anyres.fitted_size(width, height, 1, 1, 32)
  assert len(tiles) == rows * cols + 1
  assert np.abs(tiles[0, :h, :w].astype(int) - images.resize(smooth, w, h)).mean() < 2
  assert (tiles[0, h:] == 127).all() and (tiles[0, :, w:] == 127).all()


@hypothesis.settings(max_examples=100, deadline=None)
@hypothesis.given(st.integers(4, 600), st.integers(4, 600), st.booleans())
def test_token_boxes_tile_the_canvas(width, height, thumbnail):
  config = AnyResConfig(28, 3, 3, thumbnail=thumbnail)
  grid = anyres.select_grid(width, height, config)
  tiles = grid[0] * grid[1] + int(thumbnail and grid[0] * grid[1] > 1)
  boxes = anyres.token_boxes(width, height, grid, tiles, 49, config)
  assert boxes.shape == (tiles * 49, 4)
  own = boxes[-grid[0] * grid[1] * 49 :]
  w, h = anyres.fitted_size(width, height, *grid, 28)
  area = ((own[:, 2] - own[:, 0]) * (own[:, 3] - own[:, 1])).sum() * w * h
  assert area == pytest.approx(grid[0] * grid[1] * 28 * 28)
  assert own[:, :2].min() == 0 and own[:, 2:].max(0) == pytest.approx([grid[1] * 28 / w, grid[0] * 28 / h])
