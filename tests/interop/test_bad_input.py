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
  assert f"{safetensors_io.INDEX}: tensor model.layers.2.input_layernorm.weight is missing; expected shape (16,)" in refusal(directory)


def test_a_missing_tensor_is_named_as_in_its_file(directory):
  """A file without the "model." prefix."""
  reader = safetensors_io.Reader(directory.parent / "hf")
  bare = directory.parent / "bare"
  bare.mkdir()
  shutil.copy(directory / "config.json", bare)
  entries = ((n.removeprefix("model."), s, d, lambda n=n: reader.read(n)) for n, (_, d, s, _, _) in reader.tensors.items() if n != "model.norm.weight")
  safetensors_io.write(bare, entries)
  assert f"{bare / 'model.safetensors'}: tensor norm.weight is missing" in refusal(bare)


def test_mismatched_shape(directory):
  change_config(directory, intermediate_size=25)
  message = refusal(directory)
  assert "mlp.gate_proj.weight has shape (24, 16), expected (25, 16)" in message and ".safetensors" in message


def test_more_tensors_than_the_config_says(directory):
  change_config(directory, num_hidden_layers=1)
  assert "layers.1." in refusal(directory)


@pytest.mark.parametrize("values,words", [
    ({"model_type": "mamba"}, "model_type 'mamba' is not supported; use llama, qwen2, qwen3"),
    ({"model_type": ["llama"]}, "model_type ['llama'] is not supported"),
    ({"rope_scaling": {"rope_type": "longrope"}}, "rope type 'longrope' is not supported"),
    ({"rope_scaling": "yarn"}, "rope_parameters must be an object"),
    ({"rope_scaling": {"full_attention": {"rope_theta": 1e4}}}, "rope_parameters must be an object"),
    ({"rope_scaling": {"rope_type": "linear"}}, "there is no 'factor'; add it"),
    ({"rope_scaling": {"rope_type": "linear", "factor": None}}, "factor must be a number over 0, not None"),
    ({"rope_scaling": {"rope_type": "llama3", "factor": 2.0, "low_freq_factor": 4.0, "high_freq_factor": 4.0}}, "low_freq_factor must be below"),
    ({"rope_parameters": {"rope_theta": None}}, "rope_theta must be a number over 1, not None"),
    ({"rope_parameters": {"rope_theta": float("nan")}}, "rope_theta must be a number over 1, not nan"),
    ({"partial_rotary_factor": 0.5}, "partial_rotary_factor = 0.5 is not supported"),
    ({"hidden_act": "relu"}, "hidden_act = 'relu' is not supported"),
    ({"attention_bias": True}, "attention_bias"),
    ({"num_key_value_heads": 3}, "multiple of num_kv_heads 3"),
    ({"head_dim": 7}, "head_dim 7 must be even"),
    ({"head_dim": None, "hidden_size": 1}, "hidden_size 1 is smaller than num_attention_heads 2"),
    ({"num_attention_heads": 0}, "num_attention_heads must be a whole number over 0, not 0"),
    ({"num_hidden_layers": 0}, "num_hidden_layers must be"),
    ({"num_hidden_layers": -1}, "num_hidden_layers must be"),
    ({"vocab_size": "32"}, "vocab_size must be a whole number over 0, not '32'"),
    ({"vocab_size": 10**30}, "vocab_size must be"),
    ({"hidden_size": None}, "hidden_size must be"),
    ({"rms_norm_eps": "1e-6"}, "rms_norm_eps must be a number over 0, not '1e-6'"),
    ({"tie_word_embeddings": 1}, "tie_word_embeddings must be true or false, not 1"),
    ({"model_type": "siglip", "vision_config": "x"}, "vision_config must be an object"),
    ({"model_type": "siglip", "vision_config": {"patch_size": 0}}, "patch_size must be"),
    ({"model_type": "siglip", "vision_config": {"image_size": [8, 8]}}, "image_size must be a whole number over 0, not [8, 8]"),
    ({"model_type": "siglip", "vision_config": {"image_size": 8}}, "patch_size 16 is larger than image_size 8"),
    ({"model_type": "siglip", "vision_config": {"num_attention_heads": 5}}, "multiple of num_heads 5"),
])
def test_unsupported_configs(directory, values, words):
  change_config(directory, **values)
  assert words in refusal(directory) and "config.json: " in refusal(directory)


@pytest.mark.parametrize("text", ["{", "[]", "3", "\xff", "[" * 10_000])
def test_config_that_is_no_object(directory, text):
  (directory / "config.json").write_text(text, "latin-1")
  assert "config.json" in refusal(directory) and "download it again" in refusal(directory)


@pytest.mark.parametrize("text", ["[]", "{", '{"weight_map": {"a": 1}}', '{"weight_map": []}'])
def test_index_that_is_no_index(directory, text):
  (directory / safetensors_io.INDEX).write_text(text)
  assert f"{safetensors_io.INDEX} is not a valid index" in refusal(directory)


@pytest.mark.parametrize("data,words", [
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n", "is a Git LFS pointer, not weights; run git lfs pull"),
    (b"\n<!DOCTYPE html><html>Not found</html>", "is a web page, not weights"),
])
def test_what_a_failed_download_leaves(directory, data, words):
  file = sorted(directory.glob("*.safetensors"))[1]
  file.write_bytes(data)
  assert f"{file} {words}" in refusal(directory)


def change_header(file, change):
  """Rewrites the first tensor's entry of a header."""
  data = file.read_bytes()
  length = int.from_bytes(data[:8], "little")
  header = json.loads(data[8 : 8 + length])
  name = next(n for n in header if n != "__metadata__")
  header[name] = change(header[name])
  text = json.dumps(header).encode()
  file.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])
  return name


@pytest.mark.parametrize("change", [
    {"data_offsets": ["0", "64"]}, {"data_offsets": [0.0, 64.0]}, {"data_offsets": [64, 0]}, {"data_offsets": [-64, 0]}, {"data_offsets": [0]},
    {"dtype": ["F32"]}, {"shape": "16"}, {"shape": [-4, -4]}, {"shape": None}])
def test_damaged_headers(directory, change):
  file = sorted(directory.glob("*.safetensors"))[0]
  change_header(file, lambda entry: {**entry, **change})
  assert f"{file} has a damaged header" in refusal(directory)


@pytest.mark.parametrize("ours", [True, False])
def test_weights_must_be_floating(directory, ours):
  path = directory.parent / "ours" if ours else directory
  file = sorted(path.glob("*.safetensors"))[0]
  name = change_header(file, lambda entry: {**entry, "dtype": "I32"})
  assert f"{file}: tensor {name} has dtype int32, but weights must be floating" in refusal(path)


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


@pytest.mark.parametrize("change,words", [
    ({"embed_dim": "128"}, "embed_dim must be of type int, not '128'"), ({"num_heads": 0}, "num_heads = 0 is out of range"),
    ({"num_layers": -1}, "num_layers = -1 is out of range"), ({"norm_eps": None}, "norm_eps must be of type float"),
    ({"scan_layers": 1}, "scan_layers must be of type bool"), ({"dtype": "f32"}, "dtype 'f32' is unknown"), ({"kind": []}, "model kind [] is unknown"),
    ({"rope_scaling": 3}, "rope_scaling must be of type RopeScaling"), ({"rope_scaling": {"kind": "yarn"}}, "missing 2 required")])
def test_model_json_with_broken_values(directory, change, words):
  path = directory.parent / "ours" / "model.json"
  path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
  assert words in refusal(path.parent) and "model.json" in refusal(path.parent)


def test_a_recipe_gives_its_last_stage_by_number(directory, tmp_path):
  for name in ("2-text", "9-b", "10-c"):
    (tmp_path / "run" / name / "checkpoints" / "5" / "params").mkdir(parents=True)
    serialize.save(CONFIG, tmp_path / "run" / name)
  assert load.checkpoint_directory(tmp_path / "run") == tmp_path / "run" / "10-c"


def test_interrupted_write_leaves_nothing(tmp_path):
  def fail():
    raise RuntimeError("disk full")

  with pytest.raises(RuntimeError):
    load.save(tmp_path / "out", CONFIG, {"embedding": mapping.Tensor((2,), np.dtype("float32"), fail)})
  assert not list(pathlib.Path(tmp_path).iterdir())
