"""The language model: a Llama / Qwen2 / Qwen3 decoder.

Shapes: B batch, S sequence, D width, H heads, K KV heads, F MLP width, V vocabulary; of a cache T tokens, X pages, P slots of a page,
R rows, Q queries of a row, M pages of a row's table.
"""

from typing import NamedTuple

import einops
import flax.linen as nn
import jax
from jax.ad_checkpoint import checkpoint_name
import jax.numpy as jnp

from bluelm_jax.kernels import rotary
from bluelm_jax.kernels.attention.api import target_platform
from bluelm_jax.kernels.paged.quantize import quantize
from bluelm_jax.models import layers
from bluelm_jax.models.config import DecoderConfig
from bluelm_jax.sharding import attend
from bluelm_jax.sharding import remat
from bluelm_jax.sharding import rules


class PagedCache(NamedTuple):
  """Keys and values of the tokens seen so far, in pages that sequences share, and where this call's tokens lie.

  A call with a cache reads one row [1, T] in which queries of many sequences follow one another.

  Attributes:
    pages: (k [X, K, P, D], v), rotated keys and values; in int8 also their scales [X, K, P]. X = layers * N pages, layer l's
      page i being number l * N + i.
    slots_T: int32, for each token the slot (page * P + offset) that takes its key and value.
    rows: ((tables [R, M], positions [R, Q]), ...), int32: the tokens in order, cut into rows of one sequence each;
      see `kernels.paged.api.attention`.
  """

  pages: tuple
  slots_T: jax.Array
  rows: tuple


def empty_pages(config: DecoderConfig, count: int, page_size: int, dtype: str | None = None) -> tuple:
  """`count` pages for each layer, zeros; dtype None means the compute dtype, "int8" adds scales."""
  width = config.head_dim if target_platform() != "tpu" else -(-config.head_dim // 128) * 128
  shape = (config.num_layers * count, config.num_kv_heads, page_size)
  plain = tuple(jnp.zeros((*shape, width), dtype or config.dtype) for _ in range(2))
  return plain if dtype != "int8" else (*plain, *(jnp.zeros(shape, jnp.float32) for _ in range(2)))


class Attention(nn.Module):
  config: DecoderConfig

  @nn.compact
  def __call__(self, x_BSD, table, ids, cache=None, first_page=None):
    """`ids` is (positions, segment_ids), each [B, S]; `first_page` is this layer's in the cache."""
    c = self.config
    D, H, K, d = c.embed_dim, c.num_heads, c.num_kv_heads, c.head_dim
    q = jnp.einsum("bsd,dhk->bshk", x_BSD, layers.param(self, "q", (D, H, d), ("embed", "heads", "head_dim"), D))
    k = jnp.einsum("bsd,dhk->bshk", x_BSD, layers.param(self, "k", (D, K, d), ("embed", "kv_heads", "head_dim"), D))
    v = jnp.einsum("bsd,dhk->bshk", x_BSD, layers.param(self, "v", (D, K, d), ("embed", "kv_heads", "head_dim"), D))
    if c.qkv_bias:
      q += layers.param(self, "q_bias", (H, d), ("heads", "head_dim"), None, 0.0)
      k += layers.param(self, "k_bias", (K, d), ("kv_heads", "head_dim"), None, 0.0)
      v += layers.param(self, "v_bias", (K, d), ("kv_heads", "head_dim"), None, 0.0)
    if c.qk_norm:
      q = layers.RMSNorm(c, name="q_norm")(q)
      k = layers.RMSNorm(c, name="k_norm")(k)
    q, k = rotary.apply_rotary(q, table), rotary.apply_rotary(k, table)
    if cache is None:
      out = attend.attention(q, k, v, query=ids, key=ids, causal=True, implementation=c.attention, context_parallel=c.context_parallel)
    else:
      out, cache = _attend_to_pages(q, k, v, cache, first_page)
    layers.Tap(name="heads")(out)
    o = layers.param(self, "o", (H, d, D), ("heads", "head_dim", "embed"), H * d, (2 * c.num_layers) ** -0.5)
    # As a matrix, for the sake of its gradient: see VisionAttention.
    return einops.rearrange(out, "b s h k -> b s (h k)") @ einops.rearrange(o, "h k d -> (h k) d"), cache


def _attend_to_pages(q_1THD, k_1TKD, v_1TKD, cache: PagedCache, first_page):
  """(output [1, T, H, D], the cache with these keys and values in it)."""
  width, size = cache.pages[0].shape[3], cache.pages[0].shape[2]
  at = cache.slots_T // size + first_page, slice(None), cache.slots_T % size
  new = [jnp.pad(x[0], ((0, 0), (0, 0), (0, width - x.shape[3]))) for x in (k_1TKD, v_1TKD)]
  if len(cache.pages) == 4:
    (k, k_scale), (v, v_scale) = map(quantize, new)
    new = [k, v, k_scale, v_scale]
  cache = cache._replace(pages=tuple(old.at[at].set(x.astype(old.dtype)) for old, x in zip(cache.pages, new, strict=True)))
  scales = dict(zip(("k_scale", "v_scale"), cache.pages[2:]))
  outs, start = [], 0
  for tables_RM, positions_RQ in cache.rows:
    R, Q = positions_RQ.shape
    q_RQHD = q_1THD[0, start : start + R * Q].reshape(R, Q, *q_1THD.shape[2:])
    out = attend.paged_attention(q_RQHD, *cache.pages[:2], tables_RM + first_page, positions_RQ, **scales)
    outs.append(out.reshape(R * Q, *q_1THD.shape[2:]))
    start += R * Q
  return jnp.concatenate(outs)[None], cache


class SwiGLU(nn.Module):
  config: DecoderConfig

  @nn.compact
  def __call__(self, x_BSD):
    c = self.config
    gate = layers.param(self, "gate", (c.embed_dim, c.mlp_dim), ("embed", "mlp"), c.embed_dim)
    up = layers.param(self, "up", (c.embed_dim, c.mlp_dim), ("embed", "mlp"), c.embed_dim)
    down = layers.param(self, "down", (c.mlp_dim, c.embed_dim), ("mlp", "embed"), c.mlp_dim, (2 * c.num_layers) ** -0.5)
    x_BSF = jax.nn.silu(layers.product(x_BSD, gate)) * layers.product(x_BSD, up)
    layers.Tap(name="neurons")(x_BSF)
    return layers.product(x_BSF, down)


class Block(nn.Module):
  config: DecoderConfig

  @nn.compact
  def __call__(self, carry, first_page, table, ids):
    """`carry` is (x_BSD, cache or None)."""
    c = self.config
    before_BSD, cache = carry
    y, cache = Attention(c, name="attention")(layers.RMSNorm(c, name="attention_norm")(before_BSD), table, ids, cache, first_page)
    x_BSD = checkpoint_name(rules.constrain(before_BSD + y, "batch", "sequence", None), "mlp_in")
    x_BSD = x_BSD + SwiGLU(c, name="mlp")(layers.RMSNorm(c, name="mlp_norm")(x_BSD))
    layers.Tap(name="block")(before_BSD, x_BSD)
    return (rules.constrain(x_BSD, "batch", "sequence", None), cache), None


class Decoder(nn.Module):
  """tokens int32 [B, S] -> logits [B, S, V] in the compute dtype."""

  config: DecoderConfig

  def setup(self):
    c = self.config
    self.layers = layers.stacked(Block, c, c.num_layers, remat.policy(c.remat), (0, nn.broadcast, nn.broadcast))(c)
    self.final_norm = layers.RMSNorm(c)
    # A tied table also produces logits, which want unit variance.
    init = nn.initializers.normal(c.embed_dim**-0.5)
    annotated = nn.with_logical_partitioning(init, ("vocab", "embed"))
    self.embedding = self.param("embedding", annotated, (c.vocab_size, c.embed_dim), jnp.dtype(c.param_dtype))
    if not c.tie_embeddings:
      annotated = nn.with_logical_partitioning(init, ("embed", "vocab"))
      self.lm_head = self.param("lm_head", annotated, (c.embed_dim, c.vocab_size), jnp.dtype(c.param_dtype))

  def embed(self, tokens_BS):
    # The table stays in pieces along the width: fsdp ranks look up each other's tokens and trade the results,
    # which are far smaller than the table.
    tokens_BS = rules.constrain(tokens_BS, "groups", "sequence")
    x_BSD = jnp.take(self.embedding.astype(self.config.dtype), tokens_BS, axis=0)
    x_BSD = rules.constrain(x_BSD, "groups", "sequence", "embed")
    return rules.constrain(x_BSD, "batch", "sequence", None)

  def hidden(self, x_BSD, positions_BS, segment_ids_BS, cache: PagedCache | None = None):
    """Embeddings [B, S, D] -> (normed last hidden states [B, S, D], updated cache or None)."""
    c = self.config
    # A barrier: XLA's CPU compiler would compute sines anew wherever the table is used, for every head.
    table = jax.lax.optimization_barrier(rotary.rotary_table(positions_BS, c.head_dim, c.rope_theta, c.rope_scaling))
    first_pages = None
    if cache is not None:
      X = cache.pages[0].shape[0]
      first_pages = jnp.arange(0, X, X // c.num_layers, dtype=jnp.int32)
    (x_BSD, cache), _ = self.layers((x_BSD, cache), first_pages, table, (positions_BS, segment_ids_BS))
    return self.final_norm(x_BSD), cache

  def output_table(self):
    """[D, V] in the compute dtype, whole over fsdp ranks."""
    c = self.config
    if c.tie_embeddings:
      return rules.gathered(self.embedding.astype(c.dtype), ("vocab", "embed")).T
    return rules.gathered(self.lm_head.astype(c.dtype), ("embed", "vocab"))

  def readout(self, tokens, positions=None, segment_ids=None, cache: PagedCache | None = None):
    """All but the product that makes logits, which a loss may want in chunks; the arguments are those of `__call__`.

    Returns:
      normed last hidden states [B, S, D], the output table [D, V], and the updated cache or None.
    """
    positions, segment_ids = default_positions(tokens, positions, segment_ids, cache)
    x_BSD, cache = self.hidden(self.embed(tokens), positions, segment_ids, cache)
    return x_BSD, self.output_table(), cache

  def __call__(self, tokens, positions=None, segment_ids=None, cache: PagedCache | None = None):
    """Returns logits, or (logits, cache) when a cache is given.

    Args:
      tokens: int32 [B, S].
      positions: int32 [B, S]; None means 0, 1, ...; required with a cache.
      segment_ids: int32 [B, S], 0 = padding; None means one segment a row. A cache's rows say it instead.
    """
    x_BSD, table_DV, cache_out = self.readout(tokens, positions, segment_ids, cache)
    logits_BSV = logits(x_BSD, table_DV)
    return logits_BSV if cache is None else (logits_BSV, cache_out)


def logits(x_BSD, table_DV):
  """[B, S, V], of what `readout` gives."""
  return rules.constrain(layers.product(x_BSD, table_DV), "batch", "sequence", "vocab")


def default_positions(tokens, positions, segment_ids, cache):
  if positions is None:
    if cache is not None:
      raise ValueError("decoding with a cache needs explicit positions; pass positions=[B, S]")
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32), tokens.shape)
  if segment_ids is None:
    segment_ids = jnp.ones(tokens.shape, jnp.int32)
  return positions, segment_ids
