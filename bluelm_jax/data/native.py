"""Images at their own resolution: patches with their places, for encoders that take any number of them.

Shapes: H and W pixels, n patches, P pixels a side of a patch.
"""

import math

import einops
import numpy as np

from bluelm_jax.data import images


def qwen_size(width: int, height: int, factor: int = 28, min_pixels: int = 56 * 56, max_pixels: int = 28 * 28 * 1280) -> tuple[int, int]:
  """(width, height) of Qwen2-VL and Qwen2.5-VL (arXiv 2409.12191): multiples of patch x merge within a number of pixels.

  Raises:
    ValueError: one side is over 200 times the other.
  """
  if max(width, height) > 200 * min(width, height):
    raise ValueError(f"an image of {width}x{height} pixels is too long; crop it to at most 200:1")
  w, h = round(width / factor) * factor, round(height / factor) * factor
  if w * h > max_pixels:
    shrink = math.sqrt(width * height / max_pixels)
    return tuple(max(factor, math.floor(side / shrink / factor) * factor) for side in (width, height))
  if w * h < min_pixels:
    grow = math.sqrt(min_pixels / (width * height))
    return tuple(math.ceil(side * grow / factor) * factor for side in (width, height))
  return w, h


def moonvit_size(width: int, height: int, patch: int = 14, max_patches: int = 4096, max_side: int = 512) -> tuple[int, int]:
  """(width, height) to which MoonViT (Kimi-VL, arXiv 2504.07491) scales an image before it is padded.

  It is never enlarged; if it has more than `max_patches` whole patches it is shrunk to about as many, and a side to at
  most `max_side` of them, the extent of the position table.
  """
  count = max(1, width // patch) * max(1, height // patch)
  limit = max_side * patch
  scale = min(1.0, math.sqrt(max_patches / count), limit / width, limit / height)
  return tuple(min(max(1, int(side * scale)), limit) for side in (width, height))


def qwen(image_HWC: np.ndarray, patch: int = 14, merge: int = 2, min_pixels: int = 56 * 56, max_pixels: int = 28 * 28 * 1280):
  """`patches` of an image as Qwen2-VL and Qwen2.5-VL see it: stretched a little to whole blocks."""
  height, width = image_HWC.shape[:2]
  return patches(images.resize(image_HWC, *qwen_size(width, height, patch * merge, min_pixels, max_pixels)), patch, merge)


def moonvit(image_HWC: np.ndarray, patch: int = 14, merge: int = 2, max_patches: int = 4096, max_side: int = 512):
  """`patches` of an image as MoonViT sees it: padded with black, on the right and below, to whole blocks."""
  height, width = image_HWC.shape[:2]
  small = images.resize(image_HWC, *moonvit_size(width, height, patch, max_patches, max_side))
  right, below = (-side % (patch * merge) for side in (small.shape[1], small.shape[0]))
  return patches(np.pad(small, ((0, below), (0, right), (0, 0))), patch, merge)


def patches(image_HWC: np.ndarray, patch: int, merge: int = 1) -> tuple[np.ndarray, np.ndarray]:
  """Cuts an image whose sides are multiples of patch x merge.

  Returns:
    uint8 [n, P * P * 3], pixels row by row, and int32 positions [n, 2] (row, col). Blocks of merge x merge patches, which
    an adapter makes one token, lie together, row by row.
  """
  blocks = dict(m=merge, k=merge, p=patch, q=patch)
  found = einops.rearrange(image_HWC, "(r m p) (c k q) rgb -> (r c m k) (p q rgb)", **blocks)
  rows, cols = image_HWC.shape[0] // patch, image_HWC.shape[1] // patch
  places = np.stack(np.meshgrid(np.arange(rows, dtype=np.int32), np.arange(cols, dtype=np.int32), indexing="ij"), axis=-1)
  return found, einops.rearrange(places, "(r m) (c k) two -> (r c m k) two", m=merge, k=merge)
