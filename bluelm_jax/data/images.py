"""Image files to arrays, after a look at their headers."""

import io
import pathlib

import cv2
import numpy as np
from PIL import Image

MIN_SIDE = 4
MAX_SIDE = 16_384
MAX_PIXELS = 50_000_000


def decode(data: bytes, name: str = "image") -> np.ndarray:
  """PNG, JPEG, WebP, ... bytes to uint8 RGB [H, W, 3]; transparency is laid on white.

  Raises:
    ValueError: not an image, or a size outside the limits (checked before any pixel is decoded).
  """
  try:
    with Image.open(io.BytesIO(data)) as header:
      width, height = header.size
  except Image.DecompressionBombError as e:
    raise ValueError(f"{name} is too large; scale it to at most {MAX_SIDE} pixels a side") from e
  except (OSError, SyntaxError, ValueError) as e:
    raise ValueError(f"{name} is not a readable image; give a PNG, JPEG or WebP file") from e
  if min(width, height) < MIN_SIDE:
    raise ValueError(f"{name} is {width}x{height} pixels; at least {MIN_SIDE}x{MIN_SIDE} are needed")
  if max(width, height) > MAX_SIDE or width * height > MAX_PIXELS:
    raise ValueError(
        f"{name} is {width}x{height} pixels; scale it to at most {MAX_SIDE} a side and {MAX_PIXELS // 10**6} megapixels")
  image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
  if image is None:
    raise ValueError(f"{name} is damaged and cannot be decoded; save it again as PNG")
  if image.dtype == np.uint16:
    image = (image >> 8).astype(np.uint8)
  if image.ndim == 2:
    return cv2.cvtColor(image, cv2.COLOR_GRAY2RGB)
  if image.shape[2] == 4:
    alpha = image[..., 3:].astype(np.float32) / 255
    image = (image[..., :3] * alpha + 255 * (1 - alpha)).round().astype(np.uint8)
  return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def read(path) -> np.ndarray:
  """Reads an image file; ValueError names the file."""
  path = pathlib.Path(path)
  if not path.is_file():
    raise ValueError(f"no image at {path}; check the path")
  return decode(path.read_bytes(), str(path))
