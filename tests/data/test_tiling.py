"""Other models' tilings: worked cases by hand from the published rules, and transformers' processors at random sizes."""

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from transformers.models.got_ocr2 import image_processing_pil_got_ocr2 as got_ocr2
from transformers.models.minicpmv4_6 import image_processing_pil_minicpmv4_6 as minicpm

from bluelm_jax.data import images
from bluelm_jax.data import tiling

sides = st.integers(4, 4000)
MINICPM = minicpm.MiniCPMV4_6ImageProcessorPil()


def noise(width, height):
  return np.random.default_rng(0).integers(0, 255, (height, width, 3)).astype(np.uint8)


@pytest.mark.parametrize("width,height,rows,cols", [
    (448, 448, 1, 1), (100, 100, 1, 1),
    (896, 448, 1, 2),  # 2:1 also fits 2 x 4, which has four times the area
    (1792, 896, 2, 4),  # and here as much
    (800, 600, 3, 4),  # 4:3, and 12 tiles are no more than allowed
    (1080, 2300, 4, 2),  # 0.47 is nearest to 1/2; 2 x 4 tiles are no more than twice the image
    (1080, 2500, 5, 2),  # 0.43 to 2/5
    (1000, 100, 1, 10), (4000, 100, 1, 12),
    (1000, 1000, 3, 3), (600, 600, 1, 1),  # 360,000 pixels are less than half of 4 tiles
    (700, 700, 2, 2)])
def test_internvl_grids(width, height, rows, cols):
  assert tiling.internvl_grid(width, height) == (rows, cols)


@hypothesis.settings(max_examples=500, deadline=None)
@hypothesis.given(sides, sides, st.integers(1, 3), st.integers(3, 12))
def test_internvl_grids_are_those_of_transformers(width, height, min_tiles, max_tiles):
  cols, rows = got_ocr2.get_optimal_tiled_canvas((height, width), (448, 448), min_tiles, max_tiles)
  assert tiling.internvl_grid(width, height, 448, min_tiles, max_tiles) == (rows, cols)


@pytest.mark.parametrize("width,height", [(70, 30), (30, 70), (90, 90), (20, 20)])
def test_internvl_tiles_put_together_are_the_stretched_image(width, height):
  image = noise(width, height)
  tiles, (rows, cols), places = tiling.internvl(image, 16, max_tiles=6)
  canvas = images.resize(image, cols * 16, rows * 16)
  for place, tile in zip(places[: rows * cols], tiles):
    row, col = divmod(place - 1, 6) if rows * cols > 1 else (0, 0)
    assert np.array_equal(tile, canvas[row * 16 : row * 16 + 16, col * 16 : col * 16 + 16])
  assert np.array_equal(tiles[-1], images.resize(image, 16, 16))  # the thumbnail is last
  assert places[-1] == 0 and len(tiles) == len(places) == rows * cols + (rows * cols > 1)
  assert tiles.dtype == np.uint8 and places.dtype == np.int32
  assert len(tiling.internvl(image, 16, max_tiles=6, thumbnail=False)[0]) == rows * cols


@pytest.mark.parametrize("width,height,grid,overview,part", [  # sizes are (width, height)
    (300, 200, (1, 1), (546, 364), None),  # enlarged: r = 1.5, 448 / sqrt(r) = 365, 365 r = 547
    (448, 448, (1, 1), (448, 448), None),
    (900, 450, (1, 2), (630, 322), (448, 448)),  # 2.02 areas, so 2, 3 or 4 slices: 2 x 1 has the image's aspect
    (1344, 1344, (3, 3), (448, 448), (448, 448)),
    (1080, 1920, (4, 2), (336, 602), (476, 420)),  # 10.3 areas, at most 9: 8 or 9 slices
    (2000, 100, (1, 1), (2002, 98), None),  # long, but less than one area
    (600, 500, (1, 2), (490, 406), (350, 574))])  # 1.5 areas: 2 or 3 slices, all far from square
def test_minicpm_worked_cases(width, height, grid, overview, part):
  views, found = tiling.minicpm(noise(width, height))
  assert found == grid and views[0].shape == (*overview[::-1], 3)
  assert {v.shape for v in views[1:]} == ({(*part[::-1], 3)} if part else set()) and len(views) - 1 == (grid[0] * grid[1] if part else 0)


@hypothesis.settings(max_examples=500, deadline=None)
@hypothesis.given(sides, sides, st.integers(1, 9))
def test_minicpm_sizes_are_those_of_transformers(width, height, max_slices):
  """Its version 4.6 has the same rules; its sides are multiples of 28 pixels."""
  want = MINICPM.get_sliced_grid((height, width), max_slices, 448)
  rows, cols = tiling.minicpm_grid(width, height, 448, max_slices)
  assert (rows, cols) == (tuple(want) if want else (1, 1))
  for enlarge in (False, True):
    h, w = MINICPM.find_best_resize((height, width), 448, 14, "4x", enlarge)
    assert tiling.minicpm_size(width, height, 448, 28, enlarge) == (w, h)


def test_minicpm_slices_put_together_are_the_resized_image():
  image = noise(1080, 1920)
  views, (rows, cols) = tiling.minicpm(image)
  h, w = MINICPM.get_refine_size((1920, 1080), [rows, cols], 448, 7, "4x", True)  # multiples of 14
  whole = np.concatenate([np.concatenate(views[1 + r * cols : 1 + (r + 1) * cols], 1) for r in range(rows)], 0)
  assert np.array_equal(whole, images.resize(image, w, h))


def test_fixed_is_one_square():
  image = noise(70, 30)
  tiles, grid, places = tiling.fixed(image, 32)
  assert tiles.shape == (1, 32, 32, 3) and grid == (1, 1) and places.tolist() == [0]
  assert np.array_equal(tiles[0], images.resize(image, 32, 32))
