"""The speaker and the generate door, against transformers' own greedy decoding."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import tokenizers
import torch
import transformers

from bluelm_jax.inference import conversation
from bluelm_jax.inference.request import Options
from bluelm_jax.interop import compose
from tests import doors


def test_bad_options_are_refused():
  nan, inf = float("nan"), float("inf")
  for bad in (
      dict(max_tokens=0), dict(temperature=-1.0), dict(temperature=nan), dict(temperature=inf), dict(temperature=1e-40), dict(top_p=0.0),
      dict(top_p=nan), dict(top_k=-1), dict(min_p=1.5), dict(repetition_penalty=0.0), dict(n=0), dict(stop=('',)), dict(answer_tokens=4),
      dict(thinking_token_budget=3), dict(thinking=True, max_tokens=2), dict(top_logprobs=21), dict(seed=-1), dict(seed=2**32), dict(seed=10**30)):
    with pytest.raises(ValueError):
      Options(**bad)


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
  prompt = speaker.prompt([{"role": "user", "content": "Hi"}], False)
  assert prompt.tokens.tolist() == [256, *tokenizer.encode("Hi").ids]
  with pytest.raises(ValueError, match="empty"):
    speaker.prompt([{"role": "user", "content": ""}], False)


@pytest.mark.parametrize("files", [{"generation_config": {"eos_token_id": [7, 9]}}, {"generation_config": {}, "config": {"eos_token_id": [7, 9]}}])
@pytest.mark.parametrize("converted", [False, True])
def test_an_answer_ends_where_the_directory_says(huggingface, tmp_path, files, converted):
  directory, _, _ = huggingface
  files = {name: {**json.loads((directory / f"{name}.json").read_text()), "eos_token_id": None, **values} for name, values in files.items()}
  directory = copy(directory, tmp_path / "ends", **files)
  if converted:
    compose.convert(tmp_path / "ours", decoder=directory)
    directory = tmp_path / "ours"
  assert conversation.Speaker(directory).tokenizer.end_ids == (256, 7, 9)


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
      ((f"--checkpoint={directory}", "--prompt=x", "--draw=x.png"), "--draw needs a --prompt and an --image"),
      ((f"--checkpoint={directory}", "--prompt=x", "--prompts=x.jsonl"), "leave --prompt and --image out"),
      ((f"--checkpoint={directory}", "--prompt=x", "--thinking_token_budget=3"), "thinking_token_budget 3 needs thinking"),
      ((f"--checkpoint={directory}", "--prompt=x", "--bits=3"), "8 or 4 bits, not 3"),
      (("--prompt=x",), "checkpoint")]
  for flags, words in cases:
    out = door(*flags)
    assert out.returncode == 2 and out.stderr.startswith("error: ") and out.stderr.count("\n") == 1 and words in out.stderr, (flags, out.stderr)
