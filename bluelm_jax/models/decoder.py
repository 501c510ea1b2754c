"""The language model: a Llama / Qwen2 / Qwen3 decoder.

Shapes: B batch, S sequence, C cache slots, L layers, D width, H heads, K KV heads, F MLP width, V vocabulary.
"""

from typing import NamedTuple

import einops
import flax.linen as nn
import jax
from jax.ad_checkpoint import checkpoint_name
import jax.numpy as jnp

from bluelm_jax.kernels import rotary
from bluelm_jax.models import layers
from bluelm_jax.models.config import DecoderConfig
from bluelm_jax.sharding import attend
from bluelm_jax.sharding import remat
from bluelm_jax.sharding import rules


class KVCache(NamedTuple):
  """Keys and values of the tokens seen so far, one slot a token.

  Attributes:
    k_LBCKD, v_LBCKD: rotated keys, and values.
    positions_BC: int32 position of each slot's token.
    segment_ids_BC: int32; 0 marks an empty slot, which no real query (ids from 1) sees.
    length: int32 scalar, the next free slot.
  """

  k_LBCKD: jax.Array
  v_LBCKD: jax.Array
  positions_BC: jax.Array
  segment_ids_BC: jax.Array
  length: jax.Array


def empty_cache(config: DecoderConfig, batch: int, slots: int) -> KVCache:
  shape = (config.num_layers, batch, slots, config.num_kv_heads, config.head_dim)
  zeros = jnp.zeros((batch, slots), jnp.int32)
  return KVCache(jnp.zeros(shape, config.dtype), jnp.zeros(shape, config.dtype), zeros, zeros, jnp.int32(0))


class Attention(nn.Module):
  config: DecoderConfig

  @nn.compact
  def __call__(self, x_BSD, table, query, key, cache=None):
    """`query` and `key` are (positions, segment_ids); `cache` is (k_BCKD, v_BCKD, length)."""
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
    if cache is not None:
      k_cache, v_cache, length = cache
      k = jax.lax.dynamic_update_slice_in_dim(k_cache, k.astype(k_cache.dtype), length, axis=1)
      v = jax.lax.dynamic_update_slice_in_dim(v_cache, v.astype(v_cache.dtype), length, axis=1)
      cache = k, v
    out = attend.attention(
        q, k, v, query=query, key=key, causal=True, implementation=c.attention, context_parallel=c.context_parallel)
    layers.Tap(name="heads")(out)
    o = layers.param(self, "o", (H, d, D), ("heads", "head_dim", "embed"), H * d, (2 * c.num_layers) ** -0.5)
    # As a matrix, for the sake of its gradient: see VisionAttention.
    return einops.rearrange(out, "b s h k -> b s (h k)") @ einops.rearrange(o, "h k d -> (h k) d"), cache


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
  def __call__(self, x_BSD, cache, table, query, key, length):
    """Returns (x, this layer's updated (k, v)); `cache` is this layer's (k, v) or None."""
    c = self.config
    if cache is not None:
      cache = (*cache, length)
    before_BSD = x_BSD
    y, cache = Attention(c, name="attention")(layers.RMSNorm(c, name="attention_norm")(x_BSD), table, query, key, cache)
    x_BSD = checkpoint_name(rules.constrain(x_BSD + y, "batch", "sequence", None), "mlp_in")
    x_BSD = x_BSD + SwiGLU(c, name="mlp")(layers.RMSNorm(c, name="mlp_norm")(x_BSD))
    layers.Tap(name="block")(before_BSD, x_BSD)
    return rules.constrain(x_BSD, "batch", "sequence", None), cache


class Decoder(nn.Module):
  """tokens int32 [B, S] -> logits [B, S, V] in the compute dtype."""

  config: DecoderConfig

  def setup(self):
    c = self.config
    self.layers = layers.stacked(Block, c, c.num_layers, remat.policy(c.remat), (0, *[nn.broadcast] * 4))(c)
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

  def hidden(self, x_BSD, positions_BS, segment_ids_BS, cache: KVCache | None = None):
    """Embeddings [B, S, D] -> (normed last hidden states [B, S, D], updated cache or None)."""
    c = self.config
    # A barrier: XLA's CPU compiler would compute sines anew wherever the table is used, for every head.
    table = jax.lax.optimization_barrier(rotary.rotary_table(positions_BS, c.head_dim, c.rope_theta, c.rope_scaling))
    query = key = (positions_BS, segment_ids_BS)
    kv, length = None, None
    if cache is not None:
      length = cache.length
      update = jax.lax.dynamic_update_slice_in_dim
      key = (update(cache.positions_BC, positions_BS, length, axis=1), update(cache.segment_ids_BC, segment_ids_BS, length, axis=1))
      kv = (cache.k_LBCKD, cache.v_LBCKD)
    x_BSD, kv = self.layers(x_BSD, kv, table, query, key, length)
    if cache is not None:
      cache = KVCache(*kv, *key, length + x_BSD.shape[1])
    return self.final_norm(x_BSD), cache

  def output_table(self):
    """[D, V] in the compute dtype, whole over fsdp ranks."""
    c = self.config
    if c.tie_embeddings:
      return rules.gathered(self.embedding.astype(c.dtype), ("vocab", "embed")).T
    return rules.gathered(self.lm_head.astype(c.dtype), ("embed", "vocab"))

  def readout(self, tokens, positions=None, segment_ids=None, cache: KVCache | None = None):
    """All but the product that makes logits, which a loss may want in chunks; the arguments are those of `__call__`.

    Returns:
      normed last hidden states [B, S, D], the output table [D, V], and the updated cache or None.
    """
    positions, segment_ids = default_positions(tokens, positions, segment_ids, cache)
    x_BSD, cache = self.hidden(self.embed(tokens), positions, segment_ids, cache)
    return x_BSD, self.output_table(), cache

  def __call__(self, tokens, positions=None, segment_ids=None, cache: KVCache | None = None):
    """Returns logits, or (logits, cache) when a cache is given.

    Args:
      tokens: int32 [B, S].
      positions: int32 [B, S]; None means 0, 1, ...; required with a cache.
      segment_ids: int32 [B, S], 0 = padding; None means one segment a row.
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
