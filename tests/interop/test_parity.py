"""Logits, hidden states and gradients equal transformers' on random weights, at shapes drawn at random."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

import bluelm_jax
from bluelm_jax.interop import compose

TOLERANCE = 2e-4

def apply(model, params, tokens):
  """Compiled as one, which is quicker than operation by operation."""
  return np.asarray(jax.jit(model.apply)({"params": params}, tokens))

def randomise(model, seed):
  """Every weight away from its neutral start, biases and norms included; matrices keep the scale of their inputs at any width."""
  generator = torch.Generator().manual_seed(seed)
  with torch.no_grad():
    for name, p in model.named_parameters():
      noise = torch.randn(p.shape, generator=generator)
      if p.ndim >= 2:
        p.copy_(noise / p[0].numel() ** 0.5)
      else:
        p.copy_(1 + 0.2 * noise if name.endswith("norm.weight") or "layer_norm" in name and name.endswith("weight") else 0.1 * noise)
  return model.eval()


def draw(seed):
  """A decoder's config: family, GQA ratio 1 to 8, tied or not, rotary rule."""
  rng = np.random.default_rng(seed)
  family = ("llama", "qwen2", "qwen3")[seed % 3]
  kv = int(rng.choice([1, 2, 3]))
  ratio = int(rng.choice([1, 2, 4, 8]))
  head_dim = int(rng.choice([8, 16, 32]))
  heads = kv * ratio
  values = dict(
      vocab_size=int(rng.integers(50, 200)), num_hidden_layers=int(rng.integers(1, 4)), num_attention_heads=heads, num_key_value_heads=kv,
      hidden_size=heads * head_dim, intermediate_size=int(rng.integers(20, 100)), max_position_embeddings=64,
      tie_word_embeddings=bool(rng.integers(2)), rms_norm_eps=float(rng.choice([1e-5, 1e-6])))
  if family != "qwen2":
    values["head_dim"] = head_dim
  theta = float(rng.choice([1e4, 5e5]))
  rope = {"rope_type": "default", "rope_theta": theta}
  if seed % 4 == 1:
    rope = {"rope_type": "yarn", "rope_theta": theta, "factor": 8.0, "original_max_position_embeddings": 16}
    values["max_position_embeddings"] = 128
  if seed % 4 == 3:
    rope = {"rope_type": "llama3", "rope_theta": theta, "factor": 4.0, "original_max_position_embeddings": 32, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
  values["rope_parameters"] = rope
  config_class = {"llama": transformers.LlamaConfig, "qwen2": transformers.Qwen2Config, "qwen3": transformers.Qwen3Config}[family]
  model_class = {"llama": transformers.LlamaForCausalLM, "qwen2": transformers.Qwen2ForCausalLM, "qwen3": transformers.Qwen3ForCausalLM}[family]
  return randomise(model_class(config_class(**values)), seed), values

@pytest.mark.parametrize("seed", range(12))
def test_decoder_logits(seed, tmp_path):
  theirs, values = draw(seed)
  theirs.save_pretrained(tmp_path)
  model, params = bluelm_jax.load_pretrained(tmp_path)
  rng = np.random.default_rng(seed)
  length = int(rng.integers(5, 60))
  tokens = rng.integers(0, values["vocab_size"], (2, length))
  with torch.no_grad():
    expected = theirs(torch.tensor(tokens)).logits.numpy()
  found = apply(model, params, tokens)
  assert found.shape == expected.shape
  assert np.abs(found - expected).max() <= TOLERANCE

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}

@pytest.mark.parametrize("values", [
    {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}, "rope_scaling": YARN},
    {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}, "rope_scaling": YARN, "rope_theta": 5e5},
    {"rope_parameters": {"rope_type": "default"}, "rope_theta": 5e5},
    {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}, "rope_theta": 5e5},
    {"rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "rope_theta": 100.0}, "rope_theta": 5e5},
    {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}, "original_max_position_embeddings": 16},
    {"rope_scaling": YARN, "original_max_position_embeddings": 64},
    {"rope_scaling": {"type": "linear", "factor": 4.0}, "rope_theta": 5e5},
    {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}},
    {"rope_scaling": {}, "rope_parameters": {**YARN, "rope_theta": 100.0}},
    {}], ids=str)
def test_rotary_settings_wherever_they_stand(values, tmp_path):
  """config.json as written by hand: which setting wins where several are given."""
  theirs, _ = draw(0)
  theirs.save_pretrained(tmp_path)
  path = tmp_path / "config.json"
  config = {k: v for k, v in json.loads(path.read_text()).items() if not k.startswith("rope")}
  path.write_text(json.dumps({**config, **values}))
  theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
  model, params = bluelm_jax.load_pretrained(tmp_path)
  tokens = np.random.default_rng(0).integers(0, config["vocab_size"], (1, 50))
  with torch.no_grad():
    expected = theirs(torch.tensor(tokens)).logits.numpy()
  assert np.abs(apply(model, params, tokens) - expected).max() <= TOLERANCE

@pytest.mark.parametrize("seed", [0, 1, 2])
def test_loss_gradient(seed, tmp_path):
  theirs, values = draw(seed)
  theirs.save_pretrained(tmp_path)
  model, params = bluelm_jax.load_pretrained(tmp_path)
  tokens = np.random.default_rng(seed).integers(0, values["vocab_size"], (2, 24))
  ids = torch.tensor(tokens)
  theirs(ids, labels=ids).loss.backward()

  def loss(p):
    logits = model.apply({"params": p}, jnp.array(tokens, jnp.int32))[:, :-1]
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[:, 1:, None], axis=-1).mean()

  grads = jax.jit(jax.grad(loss))(params)
  state = dict(theirs.named_parameters())
  pairs = [
      (grads["layers"]["mlp"]["down"][0].T, state["model.layers.0.mlp.down_proj.weight"].grad),
      (grads["layers"]["attention_norm"]["scale"][0], state["model.layers.0.input_layernorm.weight"].grad),
      (grads["layers"]["attention"]["q"][0].reshape(values["hidden_size"], -1).T, state["model.layers.0.self_attn.q_proj.weight"].grad),
      (grads["embedding"], state["model.embed_tokens.weight"].grad)]
  for ours, expected in pairs:
    expected = expected.numpy()
    assert np.linalg.norm(ours - expected) <= 1e-3 * np.linalg.norm(expected) + 1e-7

@pytest.mark.parametrize("seed", range(3))
def test_vision_hidden_states(seed, tmp_path):
  rng = np.random.default_rng(seed)
  heads = int(rng.choice([2, 4]))
  patch = int(rng.choice([4, 7]))
  side = patch * int(rng.integers(3, 6)) + int(rng.integers(0, patch))  # the remainder is not seen
  config = transformers.SiglipVisionConfig(
      hidden_size=heads * 12, intermediate_size=50, num_hidden_layers=2, num_attention_heads=heads, image_size=side, patch_size=patch, vision_use_head=False)
  theirs = randomise(transformers.SiglipVisionModel(config), seed)
  theirs.save_pretrained(tmp_path)
  model, params = bluelm_jax.load_pretrained(tmp_path)
  pixels = rng.standard_normal((2, side, side, 3)).astype(np.float32)
  with torch.no_grad():
    expected = theirs(torch.tensor(pixels.transpose(0, 3, 1, 2))).last_hidden_state.numpy()
  assert np.abs(apply(model, params, pixels) - expected).max() <= TOLERANCE

@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_export_round_trip(seed, tmp_path):
  """Ours -> HuggingFace: transformers loads it with the same logits, and the weights come back bit for bit."""
  theirs, values = draw(seed)
  theirs.save_pretrained(tmp_path / "hf")
  compose.convert(tmp_path / "ours", decoder=tmp_path / "hf")
  compose.export(tmp_path / "ours", tmp_path / "back")
  again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "back", dtype=torch.float32).eval()
  tokens = torch.tensor(np.random.default_rng(seed).integers(0, values["vocab_size"], (1, 20)))
  with torch.no_grad():
    assert torch.equal(again(tokens).logits, theirs(tokens).logits)
  _, first = bluelm_jax.load_pretrained(tmp_path / "hf")
  _, second = bluelm_jax.load_pretrained(tmp_path / "back")
  assert jax.tree.all(jax.tree.map(lambda a, b: np.array_equal(a, b), first, second))

def test_compose_and_export_bluelm(tmp_path):
  vision = randomise(transformers.SiglipVisionModel(transformers.SiglipVisionConfig(
      hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=2, image_size=20, patch_size=4, vision_use_head=False)), 0)
  decoder, values = draw(2)
  vision.save_pretrained(tmp_path / "vit")
  decoder.save_pretrained(tmp_path / "llm")
  compose.convert(tmp_path / "ours", tmp_path / "vit", tmp_path / "llm")
  model, params = bluelm_jax.load_pretrained(tmp_path / "ours")
  assert model.config.tokens_per_tile == 9 and model.config.anyres.tile_size == 20
  tokens = np.random.default_rng(0).integers(0, values["vocab_size"], (1, 12))
  with torch.no_grad():
    expected = decoder(torch.tensor(tokens)).logits.numpy()
  assert np.abs(apply(model, params, tokens) - expected).max() <= TOLERANCE
  compose.export(tmp_path / "ours", tmp_path / "out")
  again = transformers.SiglipVisionModel.from_pretrained(tmp_path / "out" / "vision", dtype=torch.float32).eval()
  pixels = torch.randn(1, 3, 20, 20)
  with torch.no_grad():
    assert torch.equal(again(pixels).last_hidden_state, vision(pixels).last_hidden_state)

def test_older_names_shards_bf16(tmp_path):
  """No model. prefix, several shards, bfloat16, rope_theta at the top of config.json."""
  theirs, values = draw(4)
  theirs.to(torch.bfloat16).save_pretrained(tmp_path / "sharded", max_shard_size="20KB")
  assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 1
  model, params = bluelm_jax.load_pretrained(tmp_path / "sharded")
  assert {str(v.dtype) for v in jax.tree.leaves(params)} == {"bfloat16"} and model.config.dtype == "bfloat16"
  config = json.loads((tmp_path / "sharded" / "config.json").read_text())
  rope = config.pop("rope_parameters")
  config |= {"rope_theta": rope["rope_theta"], "rope_scaling": None}
  (tmp_path / "old").mkdir()
  (tmp_path / "old" / "config.json").write_text(json.dumps(config))
  from safetensors.torch import save_file

  state = {k.removeprefix("model."): v.contiguous() for k, v in theirs.model.state_dict().items()}
  if not config["tie_word_embeddings"]:
    state["lm_head.weight"] = theirs.lm_head.weight.contiguous()
  save_file(state, tmp_path / "old" / "model.safetensors")
  _, old = bluelm_jax.load_pretrained(tmp_path / "old")
  assert jax.tree.all(jax.tree.map(lambda a, b: np.array_equal(a, b), params, old))

@pytest.mark.parametrize("prefix", ["", "vision_model.", "vision_tower.vision_model."])
def test_vision_tensors_under_every_prefix(prefix, tmp_path):
  """Other releases of transformers and of models that hold a tower name the same tensors so; a head beside them is left."""
  from safetensors.torch import load_file
  from safetensors.torch import save_file

  theirs = randomise(transformers.SiglipVisionModel(transformers.SiglipVisionConfig(
      hidden_size=8, intermediate_size=12, num_hidden_layers=2, num_attention_heads=2, image_size=8, patch_size=4, vision_use_head=True)), 0)
  theirs.save_pretrained(tmp_path)
  model, params = bluelm_jax.load_pretrained(tmp_path)
  file = tmp_path / "model.safetensors"
  names = {k: prefix + k.removeprefix("vision_model.") for k in load_file(file)}
  assert any("head." in n for n in names)
  save_file({names[k]: v.clone() for k, v in load_file(file).items()}, file)
  _, again = bluelm_jax.load_pretrained(tmp_path)
  assert jax.tree.all(jax.tree.map(np.array_equal, params, again))

@pytest.mark.parametrize("equal", [True, False])
def test_a_head_beside_a_tied_embedding(equal, tmp_path):
  """An equal copy is passed over; another one is not silently dropped."""
  from safetensors.torch import load_file
  from safetensors.torch import save_file

  theirs, _ = draw(0)
  theirs.config.tie_word_embeddings = True
  theirs.config.save_pretrained(tmp_path)
  state = {k: v.clone() for k, v in theirs.state_dict().items()}
  state["lm_head.weight"] = state["model.embed_tokens.weight"].clone()
  state["lm_head.weight"][-1, -1] += 0.0 if equal else 1.0
  save_file(state, tmp_path / "model.safetensors")
  if equal:
    _, params = bluelm_jax.load_pretrained(tmp_path)
    assert "lm_head" not in params
  else:
    with pytest.raises(ValueError, match="model.safetensors: lm_head.weight differs from model.embed_tokens.weight.* set tie_word_embeddings to false"):
      bluelm_jax.load_pretrained(tmp_path)

def test_parts_keep_their_own_precision(tmp_path):
  """A bfloat16 language model joined to a float32 tower, and apart again."""
  transformers.SiglipVisionModel(transformers.SiglipVisionConfig(
      hidden_size=8, intermediate_size=12, num_hidden_layers=1, num_attention_heads=2, image_size=8, patch_size=4, vision_use_head=False)).save_pretrained(tmp_path / "vit")
  draw(2)[0].to(torch.bfloat16).save_pretrained(tmp_path / "llm")
  compose.convert(tmp_path / "ours", tmp_path / "vit", tmp_path / "llm")
  model, params = bluelm_jax.load_pretrained(tmp_path / "ours")
  config = model.config
  assert (config.vision.dtype, config.vision.param_dtype, config.decoder.dtype, config.decoder.param_dtype) == ("float32", "float32", "bfloat16", "bfloat16")
  assert json.loads((tmp_path / "ours" / "model.json").read_text())["decoder"]["dtype"] == "bfloat16"
  shown = dict(tiles=np.zeros((1, 1, 8, 8, 3), np.uint8), vision_index=np.array([[0, -1, -1, -1]]))
  assert jax.eval_shape(model.apply, {"params": params}, jnp.zeros((1, 4), jnp.int32), **shown).dtype == jnp.bfloat16
  compose.export(tmp_path / "ours", tmp_path / "out")
  for part, dtype in (("vision", "float32"), ("decoder", "bfloat16")):
    assert json.loads((tmp_path / "out" / part / "config.json").read_text())["torch_dtype"] == dtype

def test_scanned_and_unrolled_are_equal(tmp_path):
  import dataclasses

  from bluelm_jax.models import serialize

  theirs, values = draw(5)
  theirs.save_pretrained(tmp_path)
  model, params = bluelm_jax.load_pretrained(tmp_path)
  unrolled = serialize.build(dataclasses.replace(model.config, scan_layers=False, remat="full"))
  tokens = jnp.arange(10, dtype=jnp.int32)[None] % values["vocab_size"]
  np.testing.assert_allclose(apply(model, params, tokens), apply(unrolled, params, tokens), atol=1e-5)
