"""Image files that users bring, good and bad."""

import io
import subprocess
import sys

import cv2
import numpy as np
import PIL
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


def test_colours_of_sixteen_bits_lose_the_lower_eight():
  deep = np.random.default_rng(0).integers(0, 1 << 16, (9, 7, 3)).astype(np.uint16)
  assert np.array_equal(images.decode(cv2.imencode(".png", deep)[1].tobytes()), (deep >> 8)[..., ::-1])


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_a_file_that_is_cut_is_refused_wherever(kind):
  smooth = cv2.resize(np.random.default_rng(0).integers(0, 255, (6, 8, 3)).astype(np.uint8), (80, 60), interpolation=cv2.INTER_CUBIC)
  data = encoded(Image.fromarray(smooth), kind)
  for end in np.linspace(40, len(data) - 3, 25).astype(int):
    with pytest.raises(ValueError, match="damaged|not a readable"):
      images.decode(data[:end])


def test_transparency_is_laid_on_white():
  rgba = np.zeros((4, 4, 4), np.uint8)
  rgba[:2] = (10, 20, 30, 255)
  out = images.decode(encoded(Image.fromarray(rgba)))
  assert (out[:2] == (10, 20, 30)).all() and (out[2:] == 255).all()


def test_every_mode_becomes_rgb():
  own = ("YCbCr",) if int(PIL.__version__.split(".")[0]) >= 13 else ()  # Pillow 12, which Beam asks for, cannot read those it writes
  for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "LAB", "I;16", *own):
    pixels = images.decode(encoded(Image.new(mode, (5, 4)), "TIFF"))
    assert pixels.shape == (4, 5, 3) and pixels.dtype == np.uint8, mode


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation,turn", [
    (1, lambda x: x), (2, lambda x: x[:, ::-1]), (3, lambda x: x[::-1, ::-1]), (4, lambda x: x[::-1]), (5, lambda x: x.transpose(1, 0, 2)),
    (6, lambda x: np.rot90(x, -1)), (7, lambda x: x[::-1, ::-1].transpose(1, 0, 2)), (8, np.rot90)])
def test_photographs_stand_upright(kind, orientation, turn):
  """Phones store pixels as the sensor lies and say in EXIF how to turn them."""
  stored = np.zeros((8, 16, 3), np.uint8)
  stored[:4, :8] = 255
  exif = Image.Exif()
  exif[0x0112] = orientation
  options = {"lossless": True} if kind == "WEBP" else {}
  found = images.decode(encoded(Image.fromarray(stored), kind, exif=exif, **options))
  expected = turn(stored)
  assert found.shape == expected.shape and np.array_equal(found > 127, expected > 127)


@pytest.mark.parametrize("width,height,steps", [
    (7, 5, [(7, 5, cv2.INTER_AREA)]), (40, 60, [(40, 60, cv2.INTER_CUBIC)]), (20, 30, []),
    (7, 60, [(7, 30, cv2.INTER_AREA), (7, 60, cv2.INTER_CUBIC)]), (20, 9, [(20, 9, cv2.INTER_AREA)]),
    (19, 27, [(19, 27, cv2.INTER_CUBIC)]), (10, 27, [(10, 30, cv2.INTER_AREA), (10, 27, cv2.INTER_CUBIC)])])
def test_sides_that_shrink_are_averaged_and_those_that_grow_interpolated(width, height, steps):
  image = expected = np.random.default_rng(0).integers(0, 255, (30, 20, 3)).astype(np.uint8)
  for w, h, how in steps:
    expected = cv2.resize(expected, (w, h), interpolation=how)
  assert np.array_equal(images.resize(image, width, height), expected)


@pytest.mark.parametrize("enough,size", [
    (None, (800, 600)), ((800, 800), (800, 600)), ((401, 900), (800, 600)), ((400, 300), (400, 300)), ((400, 400), (400, 300)), ((399, 700), (800, 600)),
    ((300, 300), (400, 300)), ((150, 150), (200, 150)), ((10, 10), (100, 75))])
def test_a_photograph_is_decoded_as_large_as_it_is_needed(enough, size):
  smooth = cv2.resize(np.random.default_rng(0).integers(0, 255, (6, 8, 3)).astype(np.uint8), (800, 600), interpolation=cv2.INTER_CUBIC)
  found = images.decode(encoded(Image.fromarray(smooth), "JPEG", quality=95), enough=enough)
  assert found.shape[1::-1] == size
  assert np.abs(found.astype(int) - cv2.resize(smooth, size, interpolation=cv2.INTER_AREA)).mean() < 2
  assert np.array_equal(images.decode(encoded(Image.fromarray(smooth)), enough=enough), smooth)  # other formats are whole


@pytest.mark.parametrize("mode", ["F", "I"])
def test_pixels_of_32_bits_are_refused(mode):
  with pytest.raises(ValueError, match="shot.tiff has 32-bit pixels; save it as an 8-bit PNG"):
    images.decode(encoded(Image.new(mode, (8, 8)), "TIFF"), "shot.tiff")


@pytest.mark.parametrize("size,cut", [((64, 64), -40), ((9000, 9990), None), ((20_000, 9000), None)])
def test_refusals_are_all_that_is_said(size, cut, tmp_path):
  """No decoder's own line, and no warning about size, beside the one error."""
  noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3)).astype(np.uint8)
  image = Image.fromarray(noise) if cut else Image.new("1", size)
  (tmp_path / "a.png").write_bytes(encoded(image)[:cut])
  code = "import sys; from bluelm_jax.data import images\ntry: images.read(sys.argv[1])\nexcept ValueError: sys.exit(7)"
  out = subprocess.run([sys.executable, "-W", "always", "-c", code, tmp_path / "a.png"], capture_output=True, text=True, timeout=60)
  assert (out.returncode, out.stdout, out.stderr) == (7, "", "")


@pytest.mark.parametrize("data,words", [
    (b"", "not a readable image"), (encoded(Image.new("RGB", (8, 8)), "EPS"), "not a readable image"), (b"hello", "not a readable image"), (encoded(Image.new("RGB", (40, 40)))[:60], "damaged"),
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


@pytest.mark.parametrize("kind", ["MPO", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF"])
def test_less_common_formats_are_read(kind):
  buffer = io.BytesIO()
  Image.new("RGB", (40, 24), (200, 30, 30)).save(buffer, kind)
  assert np.abs(images.decode(buffer.getvalue()).astype(int) - (200, 30, 30)).max() < 8
