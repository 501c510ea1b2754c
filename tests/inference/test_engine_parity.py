"""The engine against transformers' `generate`, and its log-probabilities in bfloat16 against the trainer's."""


import jax
import numpy as np
import pytest
import torch
import transformers

from bluelm_jax import load_pretrained
from bluelm_jax.inference.engine import Engine
from bluelm_jax.inference.request import Options
from bluelm_jax.inference.request import plain_prompt
from bluelm_jax.models import serialize
from bluelm_jax.models.config import with_execution
from tests.inference import small_engine
from tests.inference.small_engine import ids

SMALL = dict(
    vocab_size=300, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, intermediate_size=96,
    max_position_embeddings=128, eos_token_id=None, bos_token_id=None)


@pytest.mark.parametrize("family", ["Qwen3", "Llama"])
def test_greedy_tokens_are_those_of_transformers(family, tmp_path):
  """Ragged prompts, in one batch here and alone there."""
  torch.manual_seed(0)
  own = {"head_dim": 16} if family == "Qwen3" else {"rope_theta": 50_000.0}
  model = getattr(transformers, f"{family}ForCausalLM")(getattr(transformers, f"{family}Config")(**SMALL, **own)).eval()
  with torch.no_grad():
    for layer in model.model.layers:  # so that what is said depends on what was said
      layer.self_attn.o_proj.weight.mul_(20)
      layer.mlp.down_proj.weight.mul_(20)
  model.save_pretrained(tmp_path)
  rng = np.random.default_rng(0)
  prompts = [rng.integers(0, 300, n) for n in (1, 5, 17, 33, 70)]
  engine = Engine(*load_pretrained(tmp_path), end_ids=(), slots=4, prefill_tokens=32)  # one number of rows, so fewer programs
  answers = engine.generate([plain_prompt(p) for p in prompts], Options(max_tokens=24, repetition_penalty=1.5))
  for prompt, (answer,) in zip(prompts, answers):
    given = torch.tensor(prompt)[None]
    out = model.generate(
        given, attention_mask=torch.ones_like(given), max_new_tokens=24, do_sample=False, repetition_penalty=1.5, pad_token_id=0)
    expected = out[0, len(prompt) :].tolist()
    assert ids(answer) == expected and len(set(expected)) > 3


def test_bfloat16_logprobs_are_near_the_trainers():
  """Mean difference at most 2e-2, ragged and with an image."""
  model, params = small_engine.model_and_params()
  narrow = serialize.build(with_execution(model.config, dtype="bfloat16"))
  calm = jax.tree_util.tree_map_with_path(lambda path, x: x / 6 if path[-1].key in ("o", "down") else x, params)  # as a model is, not shouted
  engine = Engine(narrow, calm, end_ids=(), slots=4, pages=60, prefill_tokens=32)
  prompts = small_engine.prompts()
  answers = engine.generate(prompts, Options(max_tokens=12, temperature=1.0, seed=1))
  differences = []
  for prompt, (answer,) in zip(prompts, answers):
    expected = np.asarray(jax.nn.log_softmax(small_engine.logits(prompt, ids(answer), calm, narrow)[:-1].astype(np.float32)))
    differences += np.abs(np.array([t.logprob for t in answer]) - expected[np.arange(12), ids(answer)]).tolist()
  assert 0 < np.mean(differences) <= 2e-2
