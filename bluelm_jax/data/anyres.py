"""AnyRes: which grid of tiles an image is cut into, and the cutting.

Relaxed aspect-ratio matching is BlueLM-V-3B's (arXiv 2411.10640, section 3.2); with alpha = 0 it is
LLaVA-NeXT's rule.
"""

import einops
import numpy as np

from bluelm_jax.data import images
from bluelm_jax.models.config import AnyResConfig

_PAD = 127  # mid grey, close to 0 after normalisation


def select_grid(width: int, height: int, config: AnyResConfig) -> tuple[int, int]:
  """Returns (rows, cols) for an image of width x height pixels.

  Grids are tried from the largest down. A grid is taken if it keeps over `alpha` more of the image's
  own pixels than the best so far, or if it loses less than `alpha` of them and wastes fewer pixels.
  """
  best, best_effective, best_waste = (1, 1), 0, 0
  for cols in range(config.max_cols, 0, -1):
    for rows in range(config.max_rows, 0, -1):
      w, h = fitted_size(width, height, rows, cols, config.tile_size)
      effective = min(w * h, width * height)
      waste = config.tile_size**2 * rows * cols - effective
      gain = effective - best_effective
      slack = config.alpha * best_effective
      if gain > slack or ((-gain < slack or gain == 0) and waste < best_waste):
        best, best_effective, best_waste = (rows, cols), effective, waste
  return best


def fitted_size(width: int, height: int, rows: int, cols: int, tile_size: int) -> tuple[int, int]:
  """(width, height) of the image scaled, aspect kept, to fit the grid."""
  scale = min(tile_size * cols / width, tile_size * rows / height)
  return max(round(width * scale), 1), max(round(height * scale), 1)


def tile_image(image_HWC: np.ndarray, config: AnyResConfig) -> tuple[np.ndarray, tuple[int, int], np.ndarray]:
  """Cuts a uint8 RGB image [H, W, 3] into tiles.

  Returns:
    uint8 tiles [t, tile_size, tile_size, 3], the thumbnail first (only if configured and the grid has
    more than one tile) and then row by row; the grid (rows, cols); and int32 places [t], 0 for a tile that
    shows the whole image, else 1 + row * max_cols + col. The image lies in the upper left corner; what it
    does not cover is grey.
  """
  if getattr(image_HWC, "dtype", None) != np.uint8 or image_HWC.ndim != 3 or image_HWC.shape[2] != 3 or not image_HWC.size:
    raise ValueError("an image must be a uint8 array [height, width, 3]; decode it with bluelm_jax.data.images")
  height, width = image_HWC.shape[:2]
  rows, cols = select_grid(width, height, config)
  size = config.tile_size
  w, h = fitted_size(width, height, rows, cols, size)
  resized = images.resize(image_HWC, w, h)
  tiles = einops.rearrange(_canvas(resized, rows, cols, size), "(r h) (c w) rgb -> (r c) h w rgb", r=rows, c=cols)
  places = (1 + np.arange(rows)[:, None] * config.max_cols + np.arange(cols)).reshape(-1) * (rows * cols > 1)
  if config.thumbnail and rows * cols > 1:
    source = resized if w < width else image_HWC  # averages of averages are as good, and sooner made
    small = images.resize(source, *fitted_size(width, height, 1, 1, size))
    tiles, places = np.concatenate([_canvas(small, 1, 1, size)[None], tiles]), np.concatenate([[0], places])
  return tiles, (rows, cols), places.astype(np.int32)


def _canvas(image_HWC, rows, cols, size):
  canvas = np.full((rows * size, cols * size, 3), _PAD, np.uint8)
  canvas[: image_HWC.shape[0], : image_HWC.shape[1]] = image_HWC
  return canvas


def token_boxes(width: int, height: int, grid: tuple[int, int], tiles: int, tokens_per_tile: int, config: AnyResConfig) -> np.ndarray:
  """Where each visual token lies in the image: float [tiles * tokens_per_tile, 4] (left, top, right, bottom), 1 = its far edge.

  Tokens over padding have coordinates beyond 1.
  """
  rows, cols = grid
  side = round(tokens_per_tile**0.5)
  boxes = []
  for t in range(tiles):
    thumbnail = t - (tiles - rows * cols) < 0
    r, c = (1, 1) if thumbnail else (rows, cols)
    row, col = (0, 0) if thumbnail else divmod(t - (tiles - rows * cols), cols)
    w, h = fitted_size(width, height, r, c, config.tile_size)
    y, x = np.divmod(np.arange(side * side), side)
    left, top = (col + x / side) * config.tile_size / w, (row + y / side) * config.tile_size / h
    step_x, step_y = config.tile_size / side / w, config.tile_size / side / h
    boxes.append(np.stack([left, top, left + step_x, top + step_y], axis=1))
  return np.concatenate(boxes)
