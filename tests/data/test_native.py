"""Native resolution: sizes against the published rules, patches against the image they came from."""

import math

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from transformers.models.qwen2_vl import image_processing_pil_qwen2_vl as qwen2_vl

from bluelm_jax.data import images
from bluelm_jax.data import native

sides = st.integers(4, 5000)


@pytest.mark.parametrize("width,height,expected", [
    (280, 140, (280, 140)), (294, 140, (280, 140)), (295, 140, (308, 140)),  # 10.5 blocks round to even
    (1080, 2340, (672, 1456)),  # 2.5 M pixels, 1.0 M allowed: sides by 1.587, rounded down
    (20, 20, (56, 56)), (10, 50, (28, 140)), (5600, 28, (5600, 28))])
def test_qwen_worked_cases(width, height, expected):
  assert native.qwen_size(width, height) == expected


@hypothesis.settings(max_examples=500, deadline=None)
@hypothesis.given(sides, sides, st.sampled_from([(14, 2), (16, 2), (14, 1)]), st.integers(1, 20), st.integers(20, 2000))
def test_qwen_sizes_are_those_of_transformers(width, height, block, least, most):
  factor = block[0] * block[1]
  hypothesis.assume(max(width, height) <= 200 * min(width, height))
  h, w = qwen2_vl.smart_resize(height, width, factor, least * factor**2, most * factor**2)
  assert native.qwen_size(width, height, factor, least * factor**2, most * factor**2) == (w, h)


def test_very_long_images_are_refused():
  with pytest.raises(ValueError, match="4001x20 pixels is too long; crop it"):
    native.qwen_size(4001, 20)


@pytest.mark.parametrize("width,height,expected,grid", [  # (width, height), then padded (rows, cols)
    (280, 140, (280, 140), (10, 20)), (281, 141, (281, 141), (12, 22)),  # never enlarged; padded to blocks
    (5, 5, (5, 5), (2, 2)),
    (1080, 2400, (602, 1338), (96, 44)),  # 77 x 171 patches, 4096 allowed: sides by 0.5577
    (10_000, 56, (7168, 40), (4, 512))])  # no side over 512 patches
def test_moonvit_worked_cases(width, height, expected, grid):
  assert native.moonvit_size(width, height) == expected
  _, positions = native.moonvit(np.zeros((height, width, 3), np.uint8))
  assert tuple(positions.max(0) + 1) == grid


@hypothesis.settings(max_examples=500, deadline=None)
@hypothesis.given(sides, sides, st.integers(4, 5000))
def test_moonvit_keeps_to_its_limits(width, height, most):
  w, h = native.moonvit_size(width, height, 14, most, 512)
  assert w <= width and h <= height and max(w, h) <= 512 * 14
  if max(width // 14, 1) * max(height // 14, 1) <= most and max(width, height) <= 512 * 14:
    assert (w, h) == (width, height)
  elif max(width, height) <= 512 * 14 and min(width, height) >= 14:
    scale = math.sqrt(most / (width // 14 * (height // 14)))  # Kimi-VL's own image processor
    assert (w, h) == (max(int(width * scale), 1), max(int(height * scale), 1))


def test_moonvit_sizes_are_those_of_transformers():
  kimi = pytest.importorskip("transformers.models.kimi_k25.image_processing_kimi_k25", reason="needs torchvision", exc_type=ImportError)
  rng = np.random.default_rng(0)
  for width, height, most in rng.integers(4, 5000, (500, 3)).tolist():
    (h, w), _ = kimi.navit_resize(height, width, 14, 2, most, 512)
    assert native.moonvit_size(width, height, 14, most, 512) == (w, h)


@pytest.mark.parametrize("merge", [1, 2])
def test_patches_put_together_are_the_image(merge):
  image = np.random.default_rng(0).integers(0, 255, (28 * 3, 28 * 2, 3)).astype(np.uint8)
  patches, positions = native.patches(image, 14, merge)
  assert patches.shape == (24, 14 * 14 * 3) and positions.shape == (24, 2) and positions.dtype == np.int32
  whole = np.zeros_like(image)
  for patch, (row, col) in zip(patches, positions):
    whole[row * 14 : row * 14 + 14, col * 14 : col * 14 + 14] = patch.reshape(14, 14, 3)
  assert np.array_equal(whole, image)
  assert len(np.unique(positions // merge, axis=0)) == 24 // merge**2
  blocks = (positions // merge).reshape(-1, merge**2, 2)
  assert (blocks == blocks[:, :1]).all()  # patches of a block lie together


def test_qwen_patches_are_those_of_transformers():
  """Its patches hold a channel after the other, twice (two frames)."""
  image = np.random.default_rng(0).integers(0, 255, (112, 168, 3)).astype(np.uint8)
  processor = qwen2_vl.Qwen2VLImageProcessorPil(do_normalize=False, do_rescale=False)
  want = np.asarray(processor(image)["pixel_values"])
  ours, positions = native.qwen(image)
  assert tuple(positions.max(0) + 1) == (8, 12)
  assert np.array_equal(ours.reshape(-1, 14, 14, 3).transpose(0, 3, 1, 2), want.reshape(-1, 3, 2, 14, 14)[:, :, 0])


def test_images_are_scaled_before_they_are_cut():
  image = np.random.default_rng(0).integers(0, 255, (300, 200, 3)).astype(np.uint8)
  for patches, positions, (w, h) in ((*native.qwen(image), native.qwen_size(200, 300)), (*native.moonvit(image, max_patches=100), native.moonvit_size(200, 300, max_patches=100))):
    first = patches[np.all(positions == 0, axis=1)][0].reshape(14, 14, 3)
    assert np.array_equal(first, images.resize(image, w, h)[:14, :14])
