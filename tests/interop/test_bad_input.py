"""Damaged and mismatched checkpoints: one line that names file, tensor, expected and found shape."""

import dataclasses
import json
import pathlib
import shutil

import numpy as np
import pytest

import bluelm_jax
from bluelm_jax.interop import compose
from bluelm_jax.interop import load
from bluelm_jax.interop import mapping
from bluelm_jax.interop import safetensors_io
from bluelm_jax.models import serialize
from bluelm_jax.models.config import DecoderConfig

CONFIG = DecoderConfig(vocab_size=32, num_layers=2, embed_dim=16, num_heads=2, num_kv_heads=1, head_dim=8, mlp_dim=24)


@pytest.fixture
def directory(tmp_path):
  """A HuggingFace directory of three shards."""
  rng = np.random.default_rng(0)
  tensors = {p: mapping.in_memory(rng.standard_normal(s).astype(np.float32)) for p, s in load.param_shapes(CONFIG).items()}
  load.save(tmp_path / "ours", CONFIG, tensors)
  compose.export(tmp_path / "ours", tmp_path / "hf")
  reader = safetensors_io.Reader(tmp_path / "hf")
  (tmp_path / "shards").mkdir()
  shutil.copy(tmp_path / "hf" / "config.json", tmp_path / "shards")
  entries = ((n, s, d, lambda n=n: reader.read(n)) for n, (_, d, s, _, _) in reader.tensors.items())
  safetensors_io.write(tmp_path / "shards", entries, shard_bytes=6000)
  assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
  return tmp_path / "shards"


def refusal(path) -> str:
  with pytest.raises(ValueError) as error:
    bluelm_jax.load_pretrained(path)
  assert "\n" not in str(error.value)
  return str(error.value)


def change_config(directory, **values):
  path = directory / "config.json"
  path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_the_shards_are_good(directory):
  _, params = bluelm_jax.load_pretrained(directory)
  _, ours = bluelm_jax.load_pretrained(directory.parent / "ours")
  assert np.array_equal(params["layers"]["mlp"]["up"], ours["layers"]["mlp"]["up"])


@pytest.mark.parametrize("keep", [0, 4, 40, -8])
def test_truncated_file(directory, keep):
  file = sorted(directory.glob("*.safetensors"))[1]
  file.write_bytes(file.read_bytes()[:keep])
  message = refusal(directory)
  assert file.name in message and ("truncated" in message or "damaged" in message)


def test_truncation_names_the_tensor_and_its_shape(directory):
  file = sorted(directory.glob("*.safetensors"))[1]
  last = max(safetensors_io.Reader(directory).tensors.items(), key=lambda t: (t[1][0] == file, t[1][4]))
  file.write_bytes(file.read_bytes()[:-8])
  message = refusal(directory)
  assert last[0] in message and str(last[1][2]) in message and file.name in message


def test_missing_shard(directory):
  file = sorted(directory.glob("*.safetensors"))[1]
  file.unlink()
  assert file.name in refusal(directory) and "missing" in refusal(directory)


def test_missing_tensor(directory):
  change_config(directory, num_hidden_layers=3)
  message = refusal(directory)
  assert "layers.2." in message and "missing" in message and "expected shape (16,)" in message


def test_mismatched_shape(directory):
  change_config(directory, intermediate_size=25)
  message = refusal(directory)
  assert "mlp.gate_proj.weight has shape (24, 16), expected (25, 16)" in message and ".safetensors" in message


def test_more_tensors_than_the_config_says(directory):
  change_config(directory, num_hidden_layers=1)
  assert "layers.1." in refusal(directory)


@pytest.mark.parametrize("values,words", [
    ({"model_type": "mamba"}, "model_type 'mamba' is not supported; use llama, qwen2, qwen3"),
    ({"rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4}}, "rope type 'longrope' is not supported"),
    ({"hidden_act": "relu"}, "hidden_act = 'relu' is not supported"),
    ({"attention_bias": True}, "attention_bias"),
    ({"num_key_value_heads": 3}, "multiple of num_kv_heads 3"),
])
def test_unsupported_configs(directory, values, words):
  change_config(directory, **values)
  assert words in refusal(directory)


def test_config_that_is_no_json(directory):
  (directory / "config.json").write_text("{")
  assert "config.json is not valid JSON" in refusal(directory)


def test_index_that_is_no_index(directory):
  (directory / safetensors_io.INDEX).write_text("[]")
  assert safetensors_io.INDEX in refusal(directory)


def test_no_weights_and_no_checkpoint(directory, tmp_path):
  for file in directory.glob("*.safetensors*"):
    file.unlink()
  assert "no model.safetensors" in refusal(directory)
  (tmp_path / "empty").mkdir()
  assert "neither model.json nor config.json" in refusal(tmp_path / "empty")
  assert "no checkpoint directory" in refusal(tmp_path / "nowhere")


def test_checkpoint_of_another_preset(directory):
  ours = directory.parent / "ours"
  serialize.save(dataclasses.replace(CONFIG, mlp_dim=32), ours)
  message = refusal(ours)
  assert "another preset" in message and "(2, 24, 16)" in message and "(2, 32, 16)" in message


def test_model_json_with_an_unknown_field(directory):
  ours = directory.parent / "ours"
  values = json.loads((ours / "model.json").read_text())
  (ours / "model.json").write_text(json.dumps({**values, "dropout": 0.1}))
  assert "no field 'dropout'" in refusal(ours) and "model.json" in refusal(ours)
  (ours / "model.json").write_text("{")
  assert "model.json is not a model description" in refusal(ours)


def test_interrupted_write_leaves_nothing(tmp_path):
  def fail():
    raise RuntimeError("disk full")

  with pytest.raises(RuntimeError):
    load.save(tmp_path / "out", CONFIG, {"embedding": mapping.Tensor((2,), np.dtype("float32"), fail)})
  assert not list(pathlib.Path(tmp_path).iterdir())
