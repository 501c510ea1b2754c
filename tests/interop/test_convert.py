"""The convert door: memory, and what it refuses."""

import os
import pathlib
import subprocess
import sys

import cv2
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest
import tokenizers
import torch
import transformers

import bluelm_jax
from bluelm_jax.data import chat
from bluelm_jax.data.tokenizer import Tokenizer
from bluelm_jax.inference import conversation
from bluelm_jax.inference.request import Options
from bluelm_jax.interop import compose
from bluelm_jax.interop import load
from bluelm_jax.interop import mapping
from bluelm_jax.interop import safetensors_io
from bluelm_jax.models.config import DecoderConfig
from bluelm_jax.models.config import VisionConfig
from tests import doors
from tests.training import tiny

ROOT = pathlib.Path(__file__).parents[2]


def decoder_config(**changes):
  values = dict(vocab_size=64, num_layers=2, embed_dim=16, num_heads=2, num_kv_heads=1, head_dim=8, mlp_dim=24, tie_embeddings=True)
  return DecoderConfig(**{**values, **changes})


def random_tensors(config, dtype=np.float32):
  rng = np.random.default_rng(0)
  return {p: mapping.in_memory(rng.standard_normal(s).astype(dtype)) for p, s in load.param_shapes(config).items()}


def door(*flags):
  return doors.run("bluelm_jax.convert", *flags)


def peak(*flags):
  """Runs the door in a process of its own from the start, and returns its peak memory in bytes."""
  code = "import atexit, re, runpy\natexit.register(lambda: print('peak', 1024 * int(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1])))\n"
  code += "runpy.run_module('bluelm_jax.convert', run_name='__main__')"
  out = subprocess.run([sys.executable, "-c", code, *flags], cwd=ROOT, capture_output=True, text=True, timeout=300, env={**os.environ, "XLA_FLAGS": ""})
  assert out.returncode == 0, out.stderr
  return int(out.stdout.split("peak ")[1])


def test_conversion_streams(tmp_path):
  """Both ways, what a checkpoint adds to the door's memory stays under 1.3 times its size."""
  sizes = {}
  for name, config in (("tiny", decoder_config()), ("large", decoder_config(num_layers=24, embed_dim=512, mlp_dim=4096, vocab_size=20_000))):
    tensors = random_tensors(config, ml_dtypes.bfloat16)
    load.save(tmp_path / name, config, tensors)
    sizes[name] = sum(int(np.prod(t.shape)) * 2 for t in tensors.values())
    sizes[name + " out"] = peak(f"--checkpoint={tmp_path / name}", f"--export={tmp_path / name}-hf")
    sizes[name + " in"] = peak(f"--decoder={tmp_path / name}-hf", f"--output={tmp_path / name}-again")
  assert sizes["large"] > 300e6
  for way in ("in", "out"):
    assert sizes[f"large {way}"] - sizes[f"tiny {way}"] < 1.3 * (sizes["large"] - sizes["tiny"])
  first, second = (safetensors_io.Reader(tmp_path / n) for n in ("large", "large-again"))
  assert all(np.array_equal(first.read(n), second.read(n)) for n in first.tensors) and set(first.tensors) == set(second.tensors)


def test_a_training_checkpoint_is_exported(tmp_path):
  """Orbax in, HuggingFace out, the same weights."""
  from bluelm_jax.training import checkpoints
  from bluelm_jax.training import stage
  from bluelm_jax.training import state

  config, rng = tiny.shallow(), np.random.default_rng(0)
  weights = {path: jnp.asarray(rng.standard_normal(shape), jnp.float32) for path, shape in load.param_shapes(config).items()}
  (tmp_path / "run").mkdir()
  stage.describe(tmp_path / "run", config, Tokenizer(), {})
  kept = checkpoints.Checkpoints(tmp_path / "run", keep=1)
  kept.save(state.TrainState(jnp.int32(1), weights, {}, optax.sgd(0.1).init(weights)), {})
  kept.close()
  _, params = bluelm_jax.load_pretrained(tmp_path / "run")
  out = door(f"--checkpoint={tmp_path / 'run'}", f"--export={tmp_path / 'hf'}")
  assert out.returncode == 0, out.stderr
  _, decoder = bluelm_jax.load_pretrained(tmp_path / "hf" / "decoder")
  assert jax.tree.all(jax.tree.map(np.array_equal, decoder, params["decoder"]))
  assert (tmp_path / "hf" / "decoder" / "tokenizer.json").is_file() and (tmp_path / "hf" / "vision" / "config.json").is_file()


def parts(tmp_path, rows: int, tie: bool):
  """SigLIP and Qwen3 directories; the tokenizer has 257 tokens and none of our markers, the embedding `rows`."""
  torch.manual_seed(0)
  transformers.SiglipVisionModel(transformers.SiglipVisionConfig(
      hidden_size=8, intermediate_size=12, num_hidden_layers=1, num_attention_heads=2, image_size=16, patch_size=4, vision_use_head=False)).save_pretrained(tmp_path / "vit")
  model = transformers.Qwen3ForCausalLM(transformers.Qwen3Config(
      vocab_size=rows, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1, head_dim=8, intermediate_size=24,
      max_position_embeddings=256, tie_word_embeddings=tie, eos_token_id=256, bos_token_id=256)).eval()
  model.save_pretrained(tmp_path / "llm")
  tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocab={c: i for i, c in enumerate(tokenizers.pre_tokenizers.ByteLevel.alphabet())}, merges=[]))
  tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
  tokenizer.decoder = tokenizers.decoders.ByteLevel()
  tokenizer.add_special_tokens(["<|endoftext|>"])
  tokenizer.save(str(tmp_path / "llm" / "tokenizer.json"))
  return model


@pytest.mark.parametrize("rows,tie,expected", [(300, True, 300), (257, True, 384), (257, False, 384)])
def test_a_composed_model_can_be_shown_an_image(rows, tie, expected, tmp_path):
  """Its tokenizer gets our markers, in spare rows or in new ones, and its language model still is transformers' own."""
  theirs = parts(tmp_path, rows, tie)
  out = door(f"--vision={tmp_path / 'vit'}", f"--decoder={tmp_path / 'llm'}", f"--output={tmp_path / 'ours'}", "--seed=3")
  assert out.returncode == 0, out.stderr
  speaker = conversation.Speaker(tmp_path / "ours")
  assert speaker.model.config.decoder.vocab_size == expected and speaker.tokenizer.vocab_size == 257 + len(chat.MARKERS)
  assert [speaker.tokenizer.encode(m) for m in chat.MARKERS] == [[257 + i] for i in range(len(chat.MARKERS))]
  cv2.imwrite(str(tmp_path / "a.png"), np.random.default_rng(0).integers(0, 255, (30, 16, 3)).astype(np.uint8))
  assert "".join(piece.text for piece in speaker.reply("What?", [tmp_path / "a.png"], Options(max_tokens=4, thinking=True)))
  compose.export(tmp_path / "ours", tmp_path / "back")
  again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "back" / "decoder", dtype=torch.float32).eval()
  tokens = torch.arange(0, 257, 11)[None]
  with torch.no_grad():
    found, wanted = again(tokens).logits, theirs(tokens).logits
  assert found.shape[-1] == expected and torch.allclose(found[..., :rows], wanted, atol=1e-6)
  assert (found[..., rows:].amax(-1) < wanted.amax(-1)).all() if expected > rows else True
  assert transformers.PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "back" / "decoder" / "tokenizer.json")).convert_tokens_to_ids("<image>") > 256


def test_the_markers_a_tokenizer_has_are_kept(tmp_path):
  """A language model of our own: nothing is added, and the file is the same."""
  from bluelm_jax.data.tokenizer import ASSET

  parts(tmp_path, 300, True)
  config = decoder_config(vocab_size=1152)
  load.save(tmp_path / "own", config, random_tensors(config), {"tokenizer.json": ASSET.read_bytes()})
  compose.convert(tmp_path / "ours", tmp_path / "vit", tmp_path / "own", markers=chat.MARKERS)
  assert (tmp_path / "ours" / "tokenizer.json").read_bytes() == ASSET.read_bytes()
  assert bluelm_jax.load_pretrained(tmp_path / "ours")[0].config.decoder.vocab_size == 1152


@pytest.mark.parametrize("flags,words", [
    ((), "give either"),
    (("--decoder=D",), "--output is missing"),
    (("--checkpoint=C",), "belong together"),
    (("--decoder=D", "--output=O", "--checkpoint=C", "--export=E"), "give either"),
    (("--checkpoint=C", "--export=E", "--seed=0"), "an export makes none"),
    (("--decoder=LM", "--output=O", "--seed=0"), "none is made here"),
    (("--decoder=LM", "--vision=V", "--output=O", "--seed=99999999999999999999"), "is out of range"),
    (("--decoder=/no/such", "--output=O"), "no checkpoint directory"),
    (("--vision=LM", "--output=O"), "swap the paths"),
    (("--decoder=LM", "--output=LM"), "exists"),
    (("--decoder=LM", "--vision=BROKEN", "--output=O"), "expected"),
    (("--checkpoint=LM", "--export=LM"), "exists"),
])
def test_refusals_leave_nothing(flags, words, tmp_path):
  config = decoder_config()
  load.save(tmp_path / "LM", config, random_tensors(config))
  vision = VisionConfig(image_size=8, patch_size=4, embed_dim=8, num_layers=1, num_heads=2, mlp_dim=8)
  load.save(tmp_path / "V", vision, random_tensors(vision))
  compose.export(tmp_path / "V", tmp_path / "BROKEN")
  text = (tmp_path / "BROKEN" / "config.json").read_text()
  (tmp_path / "BROKEN" / "config.json").write_text(text.replace('"hidden_size": 8', '"hidden_size": 16'))
  before = sorted(tmp_path.rglob("*"))
  out = door(*(f.replace("=", f"={tmp_path}/", 1) if "=/" not in f and "seed" not in f else f for f in flags))
  assert out.returncode == 2 and out.stderr.startswith("error: ") and out.stderr.count("\n") == 1 and words in out.stderr, out.stderr
  assert sorted(tmp_path.rglob("*")) == before
