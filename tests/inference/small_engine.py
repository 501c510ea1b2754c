"""What the engine's tests share: a random model with its chat format, and what it says without a cache."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from bluelm_jax.data.chat import ChatFormat
from bluelm_jax.data.tokenizer import Tokenizer
from bluelm_jax.inference.engine import Engine
from bluelm_jax.inference.sampling import Think
from bluelm_jax.models import presets
from bluelm_jax.models.bluelm import BlueLM

TOKENIZER = Tokenizer()
THINK = Think(TOKENIZER.special_id("<think>"), TOKENIZER.special_id("</think>"), (40, 41, 42), tuple(TOKENIZER.encode("\n")))
SLOTS = 160  # of the rows that are read without a cache


@functools.cache
def _model_and_init():
  config = presets.miniature()
  model = BlueLM(dataclasses.replace(config, decoder=dataclasses.replace(config.decoder, num_layers=2, context=400)))
  return model, jax.jit(functools.partial(model.init, method="init_all"))


@functools.cache
def model_and_params(seed: int = 0):
  model, init = _model_and_init()
  params = nn.meta.unbox(init(jax.random.key(seed), jnp.zeros((1, 8), jnp.int32)))["params"]
  loud = lambda path, x: 6 * x if path[-1].key in ("o", "down") else x  # so that what is said depends on what was said
  return model, jax.tree_util.tree_map_with_path(loud, params)


@functools.cache
def chat() -> ChatFormat:
  config = presets.miniature()
  return ChatFormat(TOKENIZER, config.anyres, config.tokens_per_tile)


@functools.cache
def shared_engine() -> Engine:
  """One engine for the tests that leave it empty: programs are compiled once."""
  return new_engine()


def new_engine(**options) -> Engine:
  return Engine(*model_and_params(), **{"end_ids": (), "think": THINK, "slots": 4, "pages": 60, "steps": 1, **options})


def prompts():
  rng = np.random.default_rng(0)
  screen = rng.integers(0, 255, (80, 40, 3)).astype(np.uint8)
  shown = {"role": "user", "content": [{"type": "image", "image": screen}, {"type": "text", "text": "Point to the button."}]}
  ask = lambda message, thinking=False: chat().prompt([message], thinking)
  return [ask({"role": "user", "content": "Hi"}), ask(shown, True), ask({"role": "user", "content": "你好" * 9})]


@functools.cache
def _forward(model):
  return jax.jit(lambda params, tokens, segment_ids, images: model.apply({"params": params}, tokens, segment_ids=segment_ids, **images))


def logits(prompt, answer, params=None, model=None) -> np.ndarray:
  """[len(answer) + 1, V], of the trainer's forward pass over the whole text: before each token of the answer and after it."""
  length = len(prompt.tokens)
  tokens, index = np.zeros((1, SLOTS), np.int32), np.full((1, SLOTS), -1, np.int32)
  end = length + len(answer)
  tokens[0, :length], tokens[0, length:end], index[0, :length] = prompt.tokens, answer, prompt.vision_index
  images = {"tiles": prompt.tiles[None], "vision_index": index, "tile_places": prompt.tile_places[None]} if len(prompt.tiles) else {}
  segment_ids = (np.arange(SLOTS) < end).astype(np.int32)[None]
  return np.asarray(_forward(model or model_and_params()[0])(model_and_params()[1] if params is None else params, tokens, segment_ids, images))[0, length - 1 : end]


def ids(answer) -> list[int]:
  return [t.token for t in answer]
