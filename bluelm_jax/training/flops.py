"""FLOPs of a step, counted by hand: a compiler's own count sees a scanned layer once.

A product [m, k] x [k, n] is 2 m k n. The backward pass costs twice the forward where weights are trained, once
where a gradient only passes through, nothing where none is needed. Causal attention is counted at half. What
rematerialisation computes again is work but not model FLOPs, and is kept apart.
"""

import dataclasses
import re
from typing import NamedTuple
from typing import Sequence

from bluelm_jax.models.config import BlueLMConfig
from bluelm_jax.models.config import DecoderConfig
from bluelm_jax.models.config import VisionConfig


class Work(NamedTuple):
  """What batches hold that costs FLOPs; padding is not in it.

  Attributes:
    tokens: of all documents.
    pairs: of a query and a key that see each other, n (n + 1) / 2 in a document of n tokens.
    tiles: images the vision tower sees.
  """

  tokens: float
  pairs: float
  tiles: float


def packed(documents: Sequence[int], tiles: int = 0) -> Work:
  """The work of packed documents of so many tokens each; attention stays inside each."""
  return Work(sum(documents), sum(n * (n + 1) / 2 for n in documents), tiles)


@dataclasses.dataclass(frozen=True)
class Flops:
  """Of one step. `llm`, `vision` and `adapter` leave attention's scores and sums out, which `attention` holds."""

  llm: float
  attention: float
  vision: float
  vision_attention: float
  adapter: float

  @property
  def total(self) -> float:
    return self.llm + self.attention + self.vision + self.vision_attention + self.adapter

  def __add__(self, other: "Flops") -> "Flops":
    return Flops(*(a + b for a, b in zip(dataclasses.astuple(self), dataclasses.astuple(other))))

  def scaled(self, **factors: float) -> "Flops":
    return Flops(**{f.name: getattr(self, f.name) * factors.get(f.name, 0.0) for f in dataclasses.fields(self)})


def forward(config: BlueLMConfig | DecoderConfig, work: Work) -> Flops:
  """Of one forward pass."""
  decoder = getattr(config, "decoder", config)
  llm, attention = work.tokens * llm_per_token(decoder), work.pairs * attention_per_pair(decoder)
  if not isinstance(config, BlueLMConfig):
    return Flops(llm, attention, 0.0, 0.0, 0.0)
  vision, vision_attention = vision_per_tile(config.vision)
  return Flops(llm, attention, work.tiles * vision, work.tiles * vision_attention, work.tiles * adapter_per_tile(config))


def llm_per_token(c: DecoderConfig) -> float:
  """Products with weights, the vocabulary's included; a looked-up embedding costs nothing."""
  attention = c.embed_dim * c.head_dim * 2 * (c.num_heads + c.num_kv_heads)  # q, o; k, v
  return 2.0 * (c.num_layers * (attention + 3 * c.embed_dim * c.mlp_dim) + c.embed_dim * c.vocab_size)


def output(config: BlueLMConfig | DecoderConfig, tokens: float) -> Flops:
  """Of the product that makes logits; a loss in chunks makes them twice."""
  decoder = getattr(config, "decoder", config)
  return Flops(2.0 * tokens * decoder.embed_dim * decoder.vocab_size, 0.0, 0.0, 0.0, 0.0)


def attention_per_pair(c: DecoderConfig) -> float:
  """Of a query and a key that see each other: their score, and the weighted sum of values."""
  return 4.0 * c.num_layers * c.num_heads * c.head_dim


def vision_per_tile(c: VisionConfig) -> tuple[float, float]:
  """(products with weights, attention) of one tile; every patch sees every other."""
  patches = c.grid**2
  per_patch = 3 * c.patch_size**2 * c.embed_dim + c.num_layers * (4 * c.embed_dim**2 + 2 * c.embed_dim * c.mlp_dim)
  return 2.0 * patches * per_patch, 4.0 * c.num_layers * patches**2 * c.embed_dim


def adapter_per_tile(c: BlueLMConfig) -> float:
  hidden = c.adapter.hidden_dim or c.decoder.embed_dim
  merged = c.adapter.merge**2 * c.vision.embed_dim
  return 2.0 * c.tokens_per_tile * hidden * (merged + c.decoder.embed_dim)


def train(config: BlueLMConfig | DecoderConfig, trainable, work: Work, objective: str = "lm") -> tuple[Flops, Flops]:
  """(model FLOPs, FLOPs computed again by rematerialisation) of one train step.

  Args:
    trainable: regular expressions over parameter paths, as a stage has them.
    objective: a stage's; "dense" leaves the language model's layers out, all but its output table.
  """
  fits = lambda path: any(re.fullmatch(pattern, path) for pattern in trainable)
  multimodal = isinstance(config, BlueLMConfig)
  decoder = getattr(config, "decoder", config)
  vision = multimodal and fits("vision/layers/mlp/up")
  adapter = multimodal and fits("adapter/up")
  llm = fits("decoder/layers/mlp/up" if multimodal else "layers/mlp/up")
  below = vision or adapter  # a gradient must pass through the language model
  weights = lambda trained, passes: 3.0 if trained else 2.0 if passes else 1.0
  once = forward(config, work)
  if objective == "dense":
    once = once.scaled(vision=1.0, vision_attention=1.0, adapter=1.0) + output(config, work.tokens)
  model = once.scaled(
      llm=weights(llm, below), attention=3.0 if llm or below else 1.0, vision=weights(vision, False),
      vision_attention=3.0 if vision else 1.0, adapter=weights(adapter, vision))
  vision_again = float(vision and config.vision.remat in ("full", "names", "offload"))
  vision_attention_again = float(vision and config.vision.remat == "full")
  layers_again = (llm or below) and objective != "dense"
  llm_again, attention_again = _again(decoder, llm_per_token(decoder)) if layers_again else (0.0, 0.0)
  recomputed = once.scaled(llm=llm_again, attention=attention_again, vision=vision_again, vision_attention=vision_attention_again)
  return model, recomputed


def _again(c: DecoderConfig, per_token: float) -> tuple[float, float]:
  """Shares of the products with weights, and of attention, that a backward pass computes again; by sharding.remat."""
  layers = 1.0 - 2.0 * c.embed_dim * c.vocab_size / per_token
  if c.remat == "full":
    return layers, 1.0
  if c.remat in ("names", "offload"):  # attention's output and the MLP's input are kept: o and down are not needed
    kept = 2.0 * c.num_layers * c.embed_dim * (c.num_heads * c.head_dim + c.mlp_dim) / per_token
    return layers - kept, 0.0
  return 0.0, 0.0
