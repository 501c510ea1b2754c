"""Image files to arrays, after a look at their headers."""

import io
import math
import pathlib
import warnings

import cv2
import numpy as np
from PIL import Image
from PIL import ImageOps

MIN_SIDE = 4
MAX_SIDE = 16_384
MAX_PIXELS = 50_000_000
_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")  # MPO comes as JPEG, Pillow < 11.3 has no AVIF; openers of others may start programs of their own
_SHRINKS = 1.2  # from here on averages of areas are nearer to what Lanczos and Pillow's filters give of a screen's text
_ORIENTATION = 0x0112  # in EXIF
_PLAIN = ("JPEG", "PNG", "WEBP")  # decoded by OpenCV, which is up to twice as fast as Pillow
_REDUCED = {8: cv2.IMREAD_REDUCED_GRAYSCALE_8, 4: cv2.IMREAD_REDUCED_GRAYSCALE_4, 2: cv2.IMREAD_REDUCED_GRAYSCALE_2, 1: 0}  # the size alone
warnings.filterwarnings("ignore", module=r"PIL\.")  # of large images and odd metadata; what matters is refused below
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_ERROR)  # as well


def decode(data: bytes, name: str = "image", enough: tuple[int, int] | None = None, most: int = MAX_PIXELS) -> np.ndarray:
  """PNG, JPEG, WebP, ... bytes to uint8 RGB [H, W, 3], turned upright; transparency is laid on white. The array may be read-only.

  Args:
    name: of the image in errors.
    enough: a (width, height) into which the image will be fitted, with its aspect kept: a JPEG is decoded at a half, a
      quarter or an eighth of its size, which is quicker, if that is not smaller. (math.inf, n) leaves n pixels a side.
    most: pixels it may have.

  Raises:
    ValueError: not an image, pixels of another kind, or a size outside the limits (checked before any pixel is decoded).
  """
  try:
    image = Image.open(io.BytesIO(data), formats=_FORMATS)
  except Image.DecompressionBombError as e:
    raise ValueError(f"{name} is too large; scale it to at most {MAX_SIDE} pixels a side") from e
  except Exception as e:  # decoders of foreign bytes raise many kinds
    raise ValueError(f"{name} is not a readable image; give a PNG, JPEG or WebP file") from e
  width, height = image.size
  if min(width, height) < MIN_SIDE:
    raise ValueError(f"{name} is {width}x{height} pixels; at least {MIN_SIDE}x{MIN_SIDE} are needed")
  if max(width, height) > MAX_SIDE or width * height > most:
    raise ValueError(f"{name} is {width}x{height} pixels; scale it to at most {MAX_SIDE} a side and {most / 10**6:g} megapixels")
  if image.mode in ("F", "I"):
    raise ValueError(f"{name} has 32-bit pixels; save it as an 8-bit PNG")
  part = 1
  if enough and image.format == "JPEG":
    scale = max(min(w / width, h / height) for w, h in (enough, enough[::-1]))  # it may lie on its side
    part = next(n for n in _REDUCED if scale <= 1 / n or n == 1)
  try:
    if image.format in _PLAIN and image.mode == "RGB" and not image.has_transparency_data and not getattr(image, "is_animated", False):
      return _plain(data, math.ceil(width / part), math.ceil(height / part), _REDUCED[part])
    if part > 1:
      image.draft(None, (width // part, height // part))
    return _pixels(image)
  except Exception as e:
    raise ValueError(f"{name} is damaged and cannot be decoded; save it again as PNG") from e


def _plain(data: bytes, width: int, height: int, reduced: int) -> np.ndarray:
  found = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB | reduced)  # turns it upright
  if found is None or found.shape[:2] not in ((height, width), (width, height)):
    raise ValueError("damaged")
  return found


def _pixels(image: Image.Image) -> np.ndarray:
  if image.getexif().get(_ORIENTATION, 1) != 1:  # for any other image this would be a copy
    image = ImageOps.exif_transpose(image)
  if image.mode.startswith("I;16"):
    grey = (np.asarray(image) >> 8).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=-1)
  if not image.has_transparency_data:
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))
  rgba = np.asarray(image.convert("RGBA"))
  alpha = rgba[..., 3:].astype(np.float32) / 255
  return (rgba[..., :3] * alpha + 255 * (1 - alpha)).round().astype(np.uint8)


def resize(image_HWC: np.ndarray, width: int, height: int) -> np.ndarray:
  """uint8 [height, width, 3]. A side that shrinks by more than _SHRINKS is averaged over areas, another interpolated (bicubic)."""
  before = image_HWC.shape[1::-1]
  size = tuple(new if new * _SHRINKS < old else old for new, old in zip((width, height), before))
  if size != before:
    image_HWC = cv2.resize(image_HWC, size, interpolation=cv2.INTER_AREA)
  if size != (width, height):
    image_HWC = cv2.resize(image_HWC, (width, height), interpolation=cv2.INTER_CUBIC)
  return image_HWC


def read(path) -> np.ndarray:
  """Reads an image file; ValueError names the file."""
  path = pathlib.Path(path)
  if not path.is_file():
    raise ValueError(f"no image at {path}; check the path")
  return decode(path.read_bytes(), str(path))
