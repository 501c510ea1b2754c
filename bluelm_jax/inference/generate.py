"""Batched generation with a KV cache: prefill, then one compiled step a token.

Shapes: B batch, P prompt slots, T tiles a row, V vocabulary.
"""

import dataclasses
import itertools
import math
from typing import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from bluelm_jax.data.batch import Example
from bluelm_jax.inference import sampling
from bluelm_jax.models.config import BlueLMConfig
from bluelm_jax.models.decoder import empty_cache


@dataclasses.dataclass(frozen=True)
class Options:
  """How to generate.

  Attributes:
    max_tokens: at most this many new tokens.
    temperature: 0 is greedy.
    seed: 32 bits.
    banned: token ids never produced, e.g. image placeholders.
  """

  max_tokens: int = 256
  temperature: float = 0.0
  top_k: int = 0
  top_p: float = 1.0
  seed: int = 0
  banned: tuple[int, ...] = ()

  def __post_init__(self):
    if self.max_tokens < 1:
      raise ValueError(f"max_tokens must be at least 1, not {self.max_tokens}")
    if not (self.temperature == 0 or 1e-6 <= self.temperature < math.inf) or not 0 < self.top_p <= 1 or self.top_k < 0:
      raise ValueError("sampling needs temperature 0 or from 1e-6 on, 0 < top_p <= 1 and top_k >= 0")
    if not 0 <= self.seed < 2**32:
      raise ValueError(f"seed {self.seed} is out of range; use 0 to {2**32 - 1}")


class Generator:
  """Generates for batches of prompts, each until a token of `end_ids`; programs are compiled once a padded shape."""

  def __init__(self, model, params, end_ids: int | Sequence[int]):
    self.model, self.params = model, params
    self.end_ids = (end_ids,) if isinstance(end_ids, int) else tuple(end_ids)
    config = model.config
    self.config = config.decoder if isinstance(config, BlueLMConfig) else config
    self._prefill = jax.jit(self._prefill_fn, static_argnames=("slots", "options"))
    self._step = jax.jit(self._step_fn, static_argnames=("options",), donate_argnames=("cache",))

  def stream(self, prompts: Sequence[Example], options: Options, rows: int | None = None, slots: int | None = None) -> Iterator[np.ndarray]:
    """Yields int32 [B], one new token of every prompt at a time, until all have ended.

    Args:
      prompts: `ChatFormat.prompt` results; `tokens` is the prompt.
      rows, slots: pad the batch and the prompts to these, so that batches share a compiled program.
    """
    tokens, lengths, images = self._pad(prompts, rows, slots)
    longest = int(lengths.max())
    if longest + options.max_tokens > self.config.context:
      raise ValueError(
          f"a prompt of {longest} tokens and {options.max_tokens} new ones exceed the context of {self.config.context}; shorten the prompt or max_tokens")
    key = jax.random.key(options.seed)
    done = np.arange(len(tokens)) >= len(prompts)
    token, cache = self._prefill(self.params, tokens, lengths, images, key, slots=tokens.shape[1] + options.max_tokens, options=options)
    position = jnp.asarray(lengths)
    for i in range(options.max_tokens):
      found = np.asarray(token)
      done |= np.isin(found, self.end_ids)
      yield found[: len(prompts)]
      if done.all() or i + 1 == options.max_tokens:
        return
      token, cache, position = self._step(self.params, token, position, cache, jax.random.fold_in(key, i + 1), options=options)

  def generate(self, prompts: Sequence[Example], options: Options, rows: int | None = None, slots: int | None = None) -> list[list[int]]:
    """The new tokens of each prompt, up to its end token."""
    steps = np.stack(list(self.stream(prompts, options, rows, slots)), axis=1).tolist()
    return [list(itertools.takewhile(lambda token: token not in self.end_ids, row)) for row in steps]

  def _pad(self, prompts, rows, slots):
    rows = rows or len(prompts)
    lengths = np.array([len(p.tokens) for p in prompts] + [1] * (rows - len(prompts)), np.int32)
    slots = max(slots or 0, -(-int(lengths.max()) // 32) * 32)
    tokens = np.zeros((rows, slots), np.int32)
    vision_index = np.full((rows, slots), -1, np.int32)
    for i, p in enumerate(prompts):
      tokens[i, : len(p.tokens)] = p.tokens
      vision_index[i, : len(p.tokens)] = p.vision_index
    most = max(len(p.tiles) for p in prompts)
    if not most:
      return tokens, lengths, {}
    tiles = np.zeros((rows, most, *prompts[0].tiles.shape[1:]), np.uint8)  # every row its own group
    tile_places = np.zeros((rows, most), np.int32)
    for i, p in enumerate(prompts):
      tiles[i, : len(p.tiles)], tile_places[i, : len(p.tiles)] = p.tiles, p.tile_places
    return tokens, lengths, {"tiles": tiles, "vision_index": vision_index, "tile_places": tile_places}

  def _prefill_fn(self, params, tokens_BP, lengths_B, images, key, *, slots, options):
    B, P = tokens_BP.shape
    positions = jnp.broadcast_to(jnp.arange(P, dtype=jnp.int32), (B, P))
    segment_ids = (positions < lengths_B[:, None]).astype(jnp.int32)
    cache = empty_cache(self.config, B, slots)
    logits, cache = self.model.apply({"params": params}, tokens_BP, positions=positions, segment_ids=segment_ids, cache=cache, **images)
    last_BV = jnp.take_along_axis(logits, (lengths_B - 1)[:, None, None], axis=1)[:, 0]
    return self._sample(key, last_BV, options), cache

  def _step_fn(self, params, token_B, position_B, cache, key, *, options):
    logits, cache = self.model.apply(
        {"params": params}, token_B[:, None], positions=position_B[:, None], segment_ids=jnp.ones_like(token_B)[:, None], cache=cache)
    return self._sample(key, logits[:, 0], options), cache, position_B + 1

  def _sample(self, key, logits_BV, options):
    if options.banned:
      logits_BV = logits_BV.at[:, jnp.array(options.banned)].set(-jnp.inf)
    return sampling.sample(key, logits_BV, options.temperature, options.top_k, options.top_p)

