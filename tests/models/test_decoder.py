"""The decoder: cache, packing, layer stack, GQA."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bluelm_jax.kernels.rotary import RopeScaling
from bluelm_jax.models.config import DecoderConfig
from bluelm_jax.models.decoder import Decoder
from bluelm_jax.models.decoder import empty_pages
from bluelm_jax.models.decoder import PagedCache

BASE = DecoderConfig(
    vocab_size=40, num_layers=3, embed_dim=24, num_heads=4, num_kv_heads=2, head_dim=8, mlp_dim=32, context=64, dtype="float64", param_dtype="float64")
VARIANTS = {
    "llama": BASE,
    "qwen2": dataclasses.replace(BASE, qkv_bias=True, tie_embeddings=True),
    "qwen3": dataclasses.replace(BASE, qk_norm=True, rope_scaling=RopeScaling("yarn", 8.0, 16)),
}


def build(config, seed=0):
  model = Decoder(config)
  params = nn.meta.unbox(jax.jit(model.init)(jax.random.key(seed), jnp.zeros((1, 4), jnp.int32)))["params"]
  noise = lambda x: x + 0.1 * jax.random.normal(jax.random.key(7), x.shape, x.dtype)  # away from neutral norms and biases
  return model, jax.tree.map(noise, params)


def tokens(shape, seed=0):
  return jnp.array(np.random.default_rng(seed).integers(0, 40, shape), jnp.int32)


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("chunks", [[20, 1, 1, 1], [1] * 23, [7, 9, 7]])
def test_cache_equals_the_whole_forward_pass(name, chunks, float64):
  """Two sequences in pieces, their pages of 4 slots in each other's way."""
  model, params = build(VARIANTS[name])
  ids = tokens((2, 23))
  whole = model.apply({"params": params}, ids)
  pages, found, at = empty_pages(model.config, 14, 4), [], 0
  tables = jnp.array([[1, 3, 5, 7, 9, 11], [2, 4, 6, 8, 10, 12]], jnp.int32)

  @jax.jit
  def apply(t, positions, pages):
    slots = jnp.take_along_axis(tables, positions // 4, axis=1) * 4 + positions % 4
    cache = PagedCache(pages, slots.reshape(-1), ((tables, positions),))
    logits, cache = model.apply({"params": params}, t.reshape(1, -1), positions=positions.reshape(1, -1), cache=cache)
    return logits.reshape(2, -1, logits.shape[-1]), cache.pages

  for n in chunks:
    positions = jnp.broadcast_to(jnp.arange(at, at + n, dtype=jnp.int32), (2, n))
    logits, pages = apply(ids[:, at : at + n], positions, pages)
    found.append(logits)
    at += n
  np.testing.assert_allclose(jnp.concatenate(found, axis=1), whole, atol=1e-10)


@pytest.mark.parametrize("name", VARIANTS)
def test_packed_equals_alone(name, float64):
  """Three segments and padding in one row; each gives the logits it gives alone."""
  model, params = build(VARIANTS[name])
  lengths, total = (5, 11, 3), 24
  row = tokens((1, total), 1)
  segment_ids, positions, at = np.zeros((1, total), np.int32), np.zeros((1, total), np.int32), 0
  for i, n in enumerate(lengths):
    segment_ids[0, at : at + n], positions[0, at : at + n] = i + 1, np.arange(n)
    at += n
  packed = model.apply({"params": params}, row, positions=jnp.array(positions), segment_ids=jnp.array(segment_ids))
  at = 0
  for n in lengths:
    alone = model.apply({"params": params}, row[:, at : at + n])
    np.testing.assert_allclose(packed[:, at : at + n], alone, atol=1e-10)
    at += n


@pytest.mark.parametrize("remat", ["none", "full", "dots", "dots_no_batch", "names", "offload"])
def test_scanned_unrolled_and_rematerialised_agree(remat, float64):
  model, params = build(VARIANTS["qwen3"])
  ids = tokens((2, 9), 2)

  def grads(config):
    loss = lambda p: jnp.sum(jnp.sin(Decoder(config).apply({"params": p}, ids)))
    return jax.jit(jax.value_and_grad(loss))(params)

  expected = grads(model.config)
  for scan in (True, False):
    found = grads(dataclasses.replace(model.config, scan_layers=scan, remat=remat))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-9), expected, found)


def test_grouped_heads_equal_repeated_ones(float64):
  model, params = build(BASE)
  wide = Decoder(dataclasses.replace(BASE, num_kv_heads=4))
  attention = {**params["layers"]["attention"]}
  for name in ("k", "v"):
    attention[name] = jnp.repeat(attention[name], 2, axis=2)
  repeated = {**params, "layers": {**params["layers"], "attention": attention}}
  ids = tokens((1, 12), 3)
  np.testing.assert_allclose(model.apply({"params": params}, ids), wide.apply({"params": repeated}, ids), atol=1e-10)


def test_tied_embeddings_have_no_head(float64):
  assert "lm_head" in build(BASE)[1] and "lm_head" not in build(VARIANTS["qwen2"])[1]


def test_impossible_shapes_are_refused():
  with pytest.raises(ValueError, match="num_kv_heads"):
    dataclasses.replace(BASE, num_kv_heads=3)
  with pytest.raises(ValueError, match="head_dim"):
    dataclasses.replace(BASE, head_dim=7)
