"""Generation with a cache equals the plain forward pass, and HuggingFace's own greedy decoding."""

import dataclasses
import functools
import json
import os
import shutil
import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
import torch
import transformers

from bluelm_jax.data.chat import ChatFormat
from bluelm_jax.data.tokenizer import Tokenizer
from bluelm_jax.inference import conversation
from bluelm_jax.inference import sampling
from bluelm_jax.inference.generate import Generator
from bluelm_jax.inference.generate import Options
from bluelm_jax.interop import compose
from bluelm_jax.models import presets
from bluelm_jax.models.bluelm import BlueLM
from tests import doors


@pytest.fixture(scope="module")
def speaker():
  """A random miniature with its chat format."""
  config = presets.miniature()
  model = BlueLM(dataclasses.replace(config, decoder=dataclasses.replace(config.decoder, num_layers=2, context=400)))
  init = jax.jit(functools.partial(model.init, method="init_all"))
  params = nn.meta.unbox(init(jax.random.key(0), jnp.zeros((1, 8), jnp.int32)))["params"]
  tokenizer = Tokenizer()
  return Generator(model, params, tokenizer.end_id), ChatFormat(tokenizer, config.anyres, config.tokens_per_tile)


def prompts(chat):
  rng = np.random.default_rng(0)
  screen = rng.integers(0, 255, (80, 40, 3)).astype(np.uint8)
  shown = {"role": "user", "content": [{"type": "image", "image": screen}, {"type": "text", "text": "Point to the button."}]}
  return [chat.prompt([{"role": "user", "content": "Hi"}], False), chat.prompt([shown], True), chat.prompt([{"role": "user", "content": "你好" * 9}], False)]


def greedy_without_cache(generator, prompt, count, slots=160):
  """One whole forward pass a token, over a padded row."""
  apply = jax.jit(lambda tokens, segment_ids, images: generator.model.apply({"params": generator.params}, tokens, segment_ids=segment_ids, **images))
  length = len(prompt.tokens)
  tokens, index = np.zeros((1, slots), np.int32), np.full((1, slots), -1, np.int32)
  tokens[0, :length], index[0, :length] = prompt.tokens, prompt.vision_index
  images = {"tiles": prompt.tiles[None], "vision_index": index, "tile_places": prompt.tile_places[None]} if len(prompt.tiles) else {}
  for at in range(length, length + count):
    logits = apply(tokens, (np.arange(slots) < at).astype(np.int32)[None], images)
    tokens[0, at] = int(logits[0, at - 1].argmax())
  return tokens[0, length : length + count].tolist()


def test_greedy_equals_the_forward_pass_whatever_the_batch(speaker):
  generator, chat = speaker
  asked = prompts(chat)
  expected = [greedy_without_cache(generator, p, 6) for p in asked]
  assert [t.tolist() for t in np.stack(list(generator.stream(asked, Options(max_tokens=6))), axis=1)] == expected
  padded = np.stack(list(generator.stream(asked, Options(max_tokens=6), rows=5, slots=200)), axis=1)
  assert padded.tolist() == expected
  alone = np.stack(list(generator.stream(asked[1:2], Options(max_tokens=6))), axis=1)
  assert alone.tolist() == expected[1:2]


def test_generate_stops_at_the_end_token(speaker):
  generator, chat = speaker
  asked = prompts(chat)[:1]
  free = generator.generate(asked, Options(max_tokens=6))[0]
  ended = Generator(generator.model, generator.params, free[2])
  assert ended.generate(asked, Options(max_tokens=6))[0] == free[: free.index(free[2])]


def test_banned_tokens_never_come(speaker):
  generator, chat = speaker
  first = generator.generate(prompts(chat)[:1], Options(max_tokens=4))[0]
  again = generator.generate(prompts(chat)[:1], Options(max_tokens=4, banned=tuple(set(first))))[0]
  assert not set(first) & set(again)


def test_sampling_follows_its_seed(speaker):
  generator, chat = speaker
  draw = lambda seed: generator.generate(prompts(chat)[:1], Options(max_tokens=8, temperature=2.0, seed=seed))
  assert draw(1) == draw(1) and draw(1) != draw(2)


def test_a_prompt_beyond_the_context_is_refused(speaker):
  generator, chat = speaker
  with pytest.raises(ValueError, match="exceed the context of 400; shorten"):
    generator.generate(prompts(chat), Options(max_tokens=390))


def test_bad_options_are_refused():
  nan, inf = float("nan"), float("inf")
  for bad in (
      dict(max_tokens=0), dict(temperature=-1.0), dict(temperature=nan), dict(temperature=inf), dict(temperature=1e-40), dict(top_p=0.0),
      dict(top_p=nan), dict(top_k=-1), dict(seed=-1), dict(seed=2**32), dict(seed=10**30)):
    with pytest.raises(ValueError):
      Options(**bad)


def test_top_k_and_top_p_keep_what_they_should():
  logits = jnp.log(jnp.array([[0.5, 0.3, 0.15, 0.05]]))
  keys = jax.random.split(jax.random.key(0), 400)
  def drawn(**kw):
    options = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, **kw}
    return np.asarray(jax.vmap(lambda k: sampling.sample(k, logits, options["temperature"], options["top_k"], options["top_p"])[0])(keys))
  assert set(drawn()) == {0, 1, 2, 3}
  assert set(drawn(top_k=2)) == {0, 1}
  assert set(drawn(top_p=0.75)) == {0, 1}
  assert set(drawn(temperature=0.0)) == {0}
  np.testing.assert_allclose(np.bincount(drawn(), minlength=4) / 400, [0.5, 0.3, 0.15, 0.05], atol=0.08)


@pytest.fixture(scope="module")
def huggingface(tmp_path_factory):
  """A random Qwen3 directory with a tokenizer, as a user brings it."""
  directory = tmp_path_factory.mktemp("qwen3")
  config = transformers.Qwen3Config(
      vocab_size=300, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=8, intermediate_size=48,
      max_position_embeddings=64, eos_token_id=256, bos_token_id=256)
  torch.manual_seed(0)
  model = transformers.Qwen3ForCausalLM(config).eval()
  with torch.no_grad():
    model.lm_head.weight.mul_(20)  # a clear argmax
  model.save_pretrained(directory)
  tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocab={c: i for i, c in enumerate(tokenizers.pre_tokenizers.ByteLevel.alphabet())}, merges=[]))
  tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
  tokenizer.decoder = tokenizers.decoders.ByteLevel()
  tokenizer.add_special_tokens(["<|endoftext|>"])
  tokenizer.save(str(directory / "tokenizer.json"))
  return directory, model, tokenizer


def copy(directory, target, change_tokenizer=None, **files):
  """A copy of a directory with another tokenizer and other JSON files."""
  shutil.copytree(directory, target)
  if change_tokenizer:
    tokenizer = tokenizers.Tokenizer.from_file(str(target / "tokenizer.json"))
    change_tokenizer(tokenizer)
    tokenizer.save(str(target / "tokenizer.json"))
  for name, values in files.items():
    (target / f"{name}.json").write_text(json.dumps(values))
  return target


def test_a_plain_prompt_begins_as_the_tokenizer_says(huggingface, tmp_path):
  directory, _, tokenizer = huggingface
  bos = tokenizers.processors.TemplateProcessing(single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 256)])
  speaker = conversation.Speaker(copy(directory, tmp_path / "bos", lambda t: setattr(t, "post_processor", bos)))
  prompt = speaker._prompt("Hi", [], False)
  assert prompt.tokens.tolist() == [256, *tokenizer.encode("Hi").ids]
  with pytest.raises(ValueError, match="empty"):
    speaker._prompt("", [], False)


@pytest.mark.parametrize("files", [{"generation_config": {"eos_token_id": [7, 9]}}, {"generation_config": {}, "config": {"eos_token_id": [7, 9]}}])
@pytest.mark.parametrize("converted", [False, True])
def test_an_answer_ends_where_the_directory_says(huggingface, tmp_path, files, converted):
  directory, _, _ = huggingface
  files = {name: {**json.loads((directory / f"{name}.json").read_text()), "eos_token_id": None, **values} for name, values in files.items()}
  directory = copy(directory, tmp_path / "ends", **files)
  if converted:
    compose.convert(tmp_path / "ours", decoder=directory)
    directory = tmp_path / "ours"
  assert conversation.Speaker(directory).generator.end_ids == (256, 7, 9)


def test_generation_ends_at_any_end_token(speaker):
  generator, chat = speaker
  asked = prompts(chat)[:1]
  free = generator.generate(asked, Options(max_tokens=6))[0]
  ended = Generator(generator.model, generator.params, (1151, free[3], free[1]))
  first = min(free.index(free[1]), free.index(free[3]))
  assert ended.generate(asked, Options(max_tokens=6))[0] == free[:first]
  assert len(list(ended.stream(asked, Options(max_tokens=6)))) == first + 1


@pytest.mark.parametrize("text,words", [("{}", "is not a tokenizer"), ("x", "is not a tokenizer"), (None, "has 301 tokens, the model 300; use a matching tokenizer")])
def test_tokenizers_that_do_not_fit_are_refused(huggingface, tmp_path, text, words):
  grow = lambda t: t.add_tokens([f"extra{i}" for i in range(44)])
  directory = copy(huggingface[0], tmp_path / "bad", None if text else grow)
  if text:
    (directory / "tokenizer.json").write_text(text)
  with pytest.raises(ValueError) as error:
    conversation.Speaker(directory)
  assert words in str(error.value) and str(directory / "tokenizer.json") in str(error.value) and "\n" not in str(error.value)


def test_eos_that_is_no_id_is_refused(huggingface, tmp_path):
  directory = copy(huggingface[0], tmp_path / "bad", generation_config={"eos_token_id": "</s>"})
  with pytest.raises(ValueError, match="generation_config.json: eos_token_id must be a token id"):
    conversation.Speaker(directory)


def test_the_reader_may_leave(huggingface):
  """`generate ... | head`: no error, whatever is still to be written."""
  command = [sys.executable, "-m", "bluelm_jax.generate", f"--checkpoint={huggingface[0]}", "--prompt=Hello", "--max_tokens=40"]
  read, write = os.pipe()
  os.close(read)
  out = subprocess.run(command, cwd=doors.ROOT, stdout=write, stderr=subprocess.PIPE, timeout=300, env=doors.ENVIRONMENT)
  os.close(write)
  assert (out.returncode, out.stderr) == (0, b"")


def door(*flags):
  return doors.run("bluelm_jax.generate", *flags)


def test_converted_huggingface_model_speaks_as_in_transformers(huggingface, tmp_path):
  directory, model, tokenizer = huggingface
  compose.convert(tmp_path / "ours", decoder=directory)
  ids = tokenizer.encode("Hello there").ids
  expected = model.generate(torch.tensor([ids]), max_new_tokens=10, do_sample=False)[0, len(ids) :].tolist()
  if 256 in expected:
    expected = expected[: expected.index(256)]
  for checkpoint in (directory, tmp_path / "ours"):
    out = door(f"--checkpoint={checkpoint}", "--prompt=Hello there", "--max_tokens=10")
    assert out.returncode == 0, out.stderr
    assert out.stdout == tokenizer.decode(expected) + "\n"


def test_door_refuses_what_it_cannot_do(huggingface, tmp_path):
  directory, _, _ = huggingface
  (tmp_path / "bad.png").write_bytes(b"no image")
  cases = [
      ((f"--checkpoint={tmp_path / 'none'}", "--prompt=x"), "no checkpoint directory"),
      ((f"--checkpoint={directory}", "--prompt=" + "x" * 100), "context"),
      ((f"--checkpoint={directory}", "--prompt=x", "--thinking"), "chat markers"),
      ((f"--checkpoint={directory}", "--prompt="), "empty"),
      ((f"--checkpoint={directory}", "--prompt=x", f"--image={tmp_path / 'bad.png'}"), "not a readable image"),
      ((f"--checkpoint={directory}", "--prompt=x", "--image=/no/such.png"), "/no/such.png"),
      ((f"--checkpoint={directory}", "--prompt=x", "--top_k=0"), "--top_k has no effect at temperature 0"),
      ((f"--checkpoint={directory}", "--prompt=x", "--temperature=1", "--seed=99999999999999999999"), "seed 99999999999999999999 is out of range"),
      ((f"--checkpoint={directory}",), "prompt")]
  for flags, words in cases:
    out = door(*flags)
    assert out.returncode == 2 and out.stderr.startswith("error: ") and out.stderr.count("\n") == 1 and words in out.stderr, (flags, out.stderr)
