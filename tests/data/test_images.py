"""Image files that users bring, good and bad."""

import io

import numpy as np
from PIL import Image
import pytest

from bluelm_jax.data import images


def encoded(image, kind="PNG", **options):
  out = io.BytesIO()
  image.save(out, kind, **options)
  return out.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "BMP"])
def test_pixels_come_back(kind):
  pixels = np.random.default_rng(0).integers(0, 255, (9, 7, 3)).astype(np.uint8)
  options = {"lossless": True} if kind == "WEBP" else {}
  assert np.array_equal(images.decode(encoded(Image.fromarray(pixels), kind, **options)), pixels)


def test_grey_palette_and_sixteen_bits_become_rgb():
  grey = np.arange(64, dtype=np.uint8).reshape(8, 8)
  assert np.array_equal(images.decode(encoded(Image.fromarray(grey))), np.repeat(grey[..., None], 3, -1))
  assert images.decode(encoded(Image.fromarray(grey).convert("P"))).shape == (8, 8, 3)
  deep = (grey.astype(np.uint16) << 8) + 7
  assert np.array_equal(images.decode(encoded(Image.fromarray(deep)))[..., 0], grey)


def test_transparency_is_laid_on_white():
  rgba = np.zeros((4, 4, 4), np.uint8)
  rgba[:2] = (10, 20, 30, 255)
  out = images.decode(encoded(Image.fromarray(rgba)))
  assert (out[:2] == (10, 20, 30)).all() and (out[2:] == 255).all()


@pytest.mark.parametrize("data,words", [
    (b"", "not a readable image"), (b"hello", "not a readable image"), (encoded(Image.new("RGB", (40, 40)))[:60], "damaged"),
    (encoded(Image.new("RGB", (1, 1))), "1x1"), (encoded(Image.new("L", (20_000, 5))), "20000x5"), (encoded(Image.new("1", (9000, 9000))), "9000x9000")])
def test_bad_images_are_refused_by_name(data, words):
  with pytest.raises(ValueError, match=words) as error:
    images.decode(data, "shot.png")
  assert "shot.png" in str(error.value) and "\n" not in str(error.value)


def test_a_bomb_is_refused_before_it_is_decoded():
  """The header promises 16 gigapixels; the file has none of them."""
  data = bytearray(encoded(Image.new("L", (8, 8))))
  data[16:24] = (130_000).to_bytes(4, "big") * 2
  with pytest.raises(ValueError, match="large|130000|not a readable"):
    images.decode(bytes(data))
