"""A model that is no preset: composed of foreign parts, trained, resumed, and spoken with."""

import json
import shutil

import cv2
import jax
import ml_dtypes
import numpy as np
import pytest
import tokenizers

import bluelm_jax
from bluelm_jax.data import chat
from bluelm_jax.data.tokenizer import ASSET
from bluelm_jax.inference import conversation
from bluelm_jax.inference.request import Options
from bluelm_jax.interop import compose
from bluelm_jax.interop import load
from bluelm_jax.interop import mapping
from bluelm_jax.models.config import DecoderConfig
from bluelm_jax.models.config import VisionConfig
from bluelm_jax.training import defaults
from bluelm_jax.training import metrics
from bluelm_jax.training import stage
from tests.bench import machine

VISION = VisionConfig(image_size=32, patch_size=8, embed_dim=8, num_layers=1, num_heads=2, mlp_dim=8)
DECODER = DecoderConfig(vocab_size=1200, num_layers=1, embed_dim=16, num_heads=2, num_kv_heads=1, head_dim=8, mlp_dim=24, context=512)


@pytest.fixture
def composed(tmp_path):
  """A tower in float32 and a language model in bfloat16, whose tokenizer ends its texts by an id of its own."""
  rng = np.random.default_rng(0)
  for name, config, dtype in (("vision", VISION, np.float32), ("decoder", DECODER, ml_dtypes.bfloat16)):
    tensors = {p: mapping.in_memory((0.02 * rng.standard_normal(s)).astype(dtype)) for p, s in load.param_shapes(config).items()}
    own = tokenizers.Tokenizer.from_file(str(ASSET))
    own.add_special_tokens(["<|mine|>"])
    beside = {"tokenizer.json": own.to_str().encode(), "generation_config.json": json.dumps({"eos_token_id": [own.token_to_id("<|mine|>")]}).encode()}
    load.save(tmp_path / name, config, tensors, beside if name == "decoder" else {})
  compose.convert(tmp_path / "composed", tmp_path / "vision", tmp_path / "decoder", markers=chat.MARKERS)
  return tmp_path / "composed"


def tiny(init_from):
  config = defaults.load(f"{machine.ROOT}/configs/stages/adapter.py:miniature")
  config.preset, config.init_from, config.optimizer.name = "", str(init_from), "adamw"
  config.steps, config.log_every, config.checkpoint_every = 3, 1, 1
  config.data.rows, config.data.length, config.data.tile_slots, config.mesh.fsdp, config.mesh.data = 8, 384, 16, 1, 8
  config.data.sources.screens.path, config.data.sources.screens.turns = "assets/screens-test.array_record", 1
  return config


def test_a_composed_model_is_trained(composed, tmp_path):
  before = bluelm_jax.load_pretrained(composed)[1]
  config, workdir = tiny(composed), tmp_path / "w"
  tower = {p: mapping.in_memory(np.full(s, 0.01, np.float32)) for p, s in load.param_shapes(VISION).items()}
  load.save(tmp_path / "tower", VISION, tower, {})
  config.init_vision = str(tmp_path / "tower")  # in the place of what it was composed with
  stage.run(config, workdir, stop_after=2)
  shutil.rmtree(composed)  # of no use once the stage has begun
  stage.run(config, workdir)
  assert [r["step"] for r in metrics.read(workdir)] == [1, 2, 3]
  model, after = bluelm_jax.load_pretrained(workdir)
  assert model.config.decoder.embed_dim == 16 and {x.dtype.name for x in jax.tree.leaves(after)} == {"float32"}
  assert np.array_equal(after["decoder"]["embedding"], before["decoder"]["embedding"].astype(np.float32))  # frozen
  assert all(np.all(x == np.float32(0.01)) for x in jax.tree.leaves(after["vision"]))
  assert not jax.tree.all(jax.tree.map(np.array_equal, after["adapter"], before["adapter"]))
  speaker = conversation.Speaker(workdir)
  assert speaker.tokenizer.encode("<|mine|>")[0] in speaker.tokenizer.end_ids
  cv2.imwrite(str(tmp_path / "a.png"), np.zeros((40, 20, 3), np.uint8))
  assert isinstance("".join(piece.text for piece in speaker.reply("What?", [tmp_path / "a.png"], Options(max_tokens=2))), str)


def test_what_a_model_without_a_preset_needs(composed, tmp_path):
  config = tiny("")
  with pytest.raises(ValueError, match="preset and init_from are both empty"):
    stage.run(config, tmp_path / "w")
  config.init_from = str(tmp_path / "vision")
  with pytest.raises(ValueError, match="vision is a vision tower"):
    stage.run(config, tmp_path / "w")
  text = defaults.load(f"{machine.ROOT}/configs/stages/teacher.py")
  text.init_vision = str(tmp_path / "vision")
  with pytest.raises(ValueError, match="init_vision is set, but preset miniature_teacher has no vision tower"):
    stage.run(text, tmp_path / "w")
  (composed / "tokenizer.json").unlink()
  with pytest.raises(ValueError, match="no tokenizer at .*composed/tokenizer.json"):
    stage.run(tiny(composed), tmp_path / "w")
  assert not (tmp_path / "w").exists()
