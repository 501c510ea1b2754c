"""How other models cut an image into tiles; `anyres` is BlueLM's own way.

Each takes a uint8 RGB image [H, W, 3]. Tiles of one size come as `anyres.tile_image` gives them: uint8 [t, size, size, 3],
their grid (rows, cols), and int32 places [t], 0 for a tile that shows the whole image, else 1 + row * max_cols + col.
"""

import math

import einops
import numpy as np

from bluelm_jax.data import images


def fixed(image_HWC: np.ndarray, size: int) -> tuple[np.ndarray, tuple[int, int], np.ndarray]:
  """One square tile, whatever the image's aspect: SigLIP's and LLaVA-1.0's way."""
  return images.resize(image_HWC, size, size)[None], (1, 1), np.zeros(1, np.int32)


def internvl_grid(width: int, height: int, size: int = 448, min_tiles: int = 1, max_tiles: int = 12) -> tuple[int, int]:
  """(rows, cols) of InternVL 1.5 (arXiv 2404.16821): the grid whose aspect is nearest to the image's.

  Of grids equally near a later one, with as many tiles or more, is taken while it has less than twice the image's area.
  Grids with equally many tiles are tried from one column on; the original leaves their order to a set.
  """
  best, nearest = (1, 1), math.inf
  for tiles in range(min_tiles, max_tiles + 1):
    for cols in (c for c in range(1, tiles + 1) if tiles % c == 0):
      rows = tiles // cols
      distance = abs(width / height - cols / rows)
      if distance < nearest or distance == nearest and width * height > 0.5 * size * size * tiles:
        best, nearest = (rows, cols), distance
  return best


def internvl(image_HWC: np.ndarray, size: int = 448, min_tiles: int = 1, max_tiles: int = 12, thumbnail: bool = True):
  """InternVL's dynamic tiling: tiles row by row, stretched to their grid, and the thumbnail last if there are several."""
  rows, cols = internvl_grid(image_HWC.shape[1], image_HWC.shape[0], size, min_tiles, max_tiles)
  canvas = images.resize(image_HWC, cols * size, rows * size)
  tiles = einops.rearrange(canvas, "(r h) (c w) rgb -> (r c) h w rgb", r=rows, c=cols)
  if rows * cols == 1:
    return tiles, (1, 1), np.zeros(1, np.int32)
  places = (1 + np.arange(rows)[:, None] * max_tiles + np.arange(cols)).reshape(-1).astype(np.int32)
  if thumbnail:
    tiles, places = np.concatenate([tiles, fixed(image_HWC, size)[0]]), np.append(places, np.int32(0))
  return tiles, (rows, cols), places


def minicpm_grid(width: int, height: int, size: int = 448, max_slices: int = 9) -> tuple[int, int]:
  """(rows, cols) of MiniCPM-V 2.5 (arXiv 2408.01800); (1, 1) is an image that is not sliced.

  About as many slices as size x size areas fit into the image; of their grids that whose slices are closest to square.
  """
  ideal = min(math.ceil(width * height / size**2), max_slices)
  if ideal <= 1:
    return 1, 1
  counts = [n for n in (ideal - 1, ideal, ideal + 1) if 1 < n <= max_slices]
  grids = [(n // cols, cols) for n in counts for cols in range(1, n + 1) if n % cols == 0]
  return min(grids, key=lambda grid: abs(math.log(width / height) - math.log(grid[1] / grid[0])))  # the first of equals


def minicpm_size(width: float, height: float, size: int = 448, patch: int = 14, enlarge: bool = False) -> tuple[int, int]:
  """(width, height) in whole patches, of about size x size pixels if it has more, or if it may be enlarged."""
  if width * height > size**2 or enlarge:
    aspect = width / height
    height = int(size / math.sqrt(aspect))
    width = int(height * aspect)
  return _multiple(width, patch), _multiple(height, patch)


def minicpm(image_HWC: np.ndarray, size: int = 448, max_slices: int = 9, patch: int = 14) -> tuple[list[np.ndarray], tuple[int, int]]:
  """MiniCPM-V's adaptive slicing.

  Returns:
    uint8 views [h, w, 3], the overview and, of an image that is sliced, its slices row by row, all alike in size; and the
    grid (rows, cols). Sides are multiples of `patch`; `native.patches` cuts them.
  """
  height, width = image_HWC.shape[:2]
  rows, cols = minicpm_grid(width, height, size, max_slices)
  overview = images.resize(image_HWC, *minicpm_size(width, height, size, patch, enlarge=rows * cols == 1))
  if rows * cols == 1:
    return [overview], (1, 1)
  w, h = minicpm_size(_multiple(width, cols) / cols, _multiple(height, rows) / rows, size, patch, enlarge=True)
  slices = einops.rearrange(images.resize(image_HWC, cols * w, rows * h), "(r h) (c w) rgb -> (r c) h w rgb", r=rows, c=cols)
  return [overview, *slices], (rows, cols)


def _multiple(length: float, of: int) -> int:
  """The nearest multiple, at least one."""
  return max(round(length / of) * of, of)
