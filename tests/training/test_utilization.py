"""FLOPs of what batches hold, and the rates made of them."""

import types

import numpy as np
import pytest

from bluelm_jax.data import loader
from bluelm_jax.data import pack
from bluelm_jax.data.chat import ChatFormat
from bluelm_jax.data.tokenizer import Tokenizer
from bluelm_jax.models import presets
from bluelm_jax.training import defaults
from bluelm_jax.training import flops
from bluelm_jax.training import state
from bluelm_jax.training import teacher
from bluelm_jax.training import utilization
from tests.bench import machine

MODEL = presets.miniature()


def meter(name="joint", kind="cpu", devices=4):
  mesh = types.SimpleNamespace(size=devices, devices=np.array([types.SimpleNamespace(device_kind=kind)]))
  config = defaults.load(f"{machine.ROOT}/configs/stages/{name}.py:miniature")
  return utilization.Meter(config, MODEL, mesh), config


def test_a_full_batch_costs_what_a_step_is_foreseen_to():
  """One document a row, every tile slot in use: `flops.train` of it is what `precompile` says of a step."""
  found, config = meter()
  spec = pack.PackSpec(4, 512, 2, 3, 1, MODEL.tokens_per_tile)
  b = pack.empty(spec)
  b.segment_ids[:], b.positions[:] = 1, np.arange(512)
  visual = 3 * MODEL.tokens_per_tile
  b.vision_index[::2, :visual] = np.arange(visual)
  expected, _ = flops.train(MODEL, config.trainable, flops.packed([512] * 4, tiles=6))
  assert found.flops(state.held(b)).total == pytest.approx(expected.total, rel=1e-6)


def test_a_real_batch_is_counted_without_padding():
  found, config = meter()
  spec = pack.PackSpec(4, 301, 1, 16, MODEL.anyres.tile_size, MODEL.tokens_per_tile)
  b = next(loader.batches(config.data.sources, ChatFormat(Tokenizer(), MODEL.anyres, MODEL.tokens_per_tile), spec, 0))
  documents = [n for ids in b.segment_ids for n in np.bincount(ids)[1:]]
  tiles = int(b.tiles.any((2, 3, 4)).sum())
  assert len(documents) > 4 and 0 < tiles < 16 and sum(documents) < b.tokens.size
  expected, _ = flops.train(MODEL, config.trainable, flops.packed(documents, tiles))
  assert found.flops(state.held(b)).total == pytest.approx(expected.total, rel=1e-6)


def test_a_teacher_is_in(monkeypatch):
  large, counts = presets.miniature_teacher(), {"tokens": 100, "pairs": 5050, "image_tokens": 0}
  alone = meter()[0].flops(counts)
  monkeypatch.setattr(teacher, "described", lambda *_: large)
  assert meter()[0].flops(counts).total == alone.total + flops.forward(large, flops.packed([100])).total


def test_rates():
  work = flops.Flops(6e12, 2e12, 3e12, 1e12, 4e12)
  known = meter(kind="TPU v5 lite")[0].rates([work, work], 2.0)  # 197 TFLOP/s each of four
  assert known == pytest.approx({"tflop_per_second_per_device": 4, "mfu": 4 / 197, "tflop_per_second_per_device_without_vision": 3, "mfu_without_vision": 3 / 197})
  assert utilization.words(known) == "4 TFLOP/s, MFU 2.0%"
  unknown = meter()[0].rates([flops.Flops(8e9, 0, 0, 0, 0)], 2.0)
  assert unknown == {"tflop_per_second_per_device": 1e-3} and utilization.words(unknown) == "1 GFLOP/s"
