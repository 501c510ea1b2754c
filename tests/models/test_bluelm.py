"""The whole model: packed equals unpacked with images, row groups, the adapter's grid."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bluelm_jax.data import pack
from bluelm_jax.data.chat import ChatFormat
from bluelm_jax.data.tokenizer import Tokenizer
from bluelm_jax.models import presets
from bluelm_jax.models.bluelm import Adapter
from bluelm_jax.models.bluelm import BlueLM
from bluelm_jax.models.config import DecoderConfig
from bluelm_jax.models.decoder import Decoder
from bluelm_jax.training import losses
from bluelm_jax.training import optimizer as optimizer_lib
from bluelm_jax.training import state


def tiny():
  config = presets.miniature()
  vision = dataclasses.replace(config.vision, image_size=16, patch_size=4, embed_dim=12, num_heads=2, mlp_dim=16, dtype="float64", param_dtype="float64")
  decoder = dataclasses.replace(
      config.decoder, num_layers=2, embed_dim=16, num_heads=2, num_kv_heads=1, head_dim=8, mlp_dim=24, dtype="float64", param_dtype="float64")
  return dataclasses.replace(config, vision=vision, decoder=decoder, anyres=dataclasses.replace(config.anyres, tile_size=16, thumbnail=True))


@functools.cache
def made():
  """What is drawn once, in double precision."""
  config = tiny()
  model = BlueLM(config)
  init = jax.jit(functools.partial(model.init, method="init_all"))
  params = nn.meta.unbox(init(jax.random.key(0), jnp.zeros((1, 8), jnp.int32)))["params"]
  chat = ChatFormat(Tokenizer(), config.anyres, config.tokens_per_tile)
  rng = np.random.default_rng(0)
  examples = []
  for i, (h, w) in enumerate([(16, 16), (32, 16), (0, 0), (40, 40), (8, 30), (0, 0)]):
    content = [{"type": "text", "text": f"Question {i}?"}]
    if h:
      content.insert(0, {"type": "image", "image": rng.integers(0, 255, (h, w, 3)).astype(np.uint8)})
    thinking = {"reasoning_content": "so"} if i % 2 else {}
    examples.append(chat.example([{"role": "user", "content": content}, {"role": "assistant", "content": f"Answer {i * 17}", **thinking}]))
  return model, params, examples


@pytest.fixture
def parts(float64):
  return made()


def spec(rows, groups=1, slots=12, length=128):
  return pack.PackSpec(rows, length, groups, slots, 16, 4)


@jax.jit
def value(params, batch):
  return jax.value_and_grad(lambda p: (jnp.sum(losses.token_losses(made()[0], p, batch)), jnp.sum(batch.loss_weights)), has_aux=True)(params)


def sums(batches):
  """Loss sum, weight sum and gradient of the loss sum over several batches."""
  return jax.tree.map(lambda *x: sum(x), *[value(made()[1], b) for b in batches])


@functools.cache
def sums_alone():
  _, _, examples = made()
  alone = [b for e in examples for b in pack.pack([e], spec(1, 1, 5))]
  assert len(alone) == len(examples)
  return sums(alone)


@pytest.mark.parametrize("rows,groups,slots", [(2, 1, 16), (2, 2, 12), (4, 2, 12)])
def test_packed_equals_unpacked(parts, rows, groups, slots):
  _, _, examples = parts
  packed = list(pack.pack(examples, spec(rows, groups, slots)))
  assert max(b.segment_ids.max() for b in packed) > 1
  ((loss, count), grads), ((loss_1, count_1), grads_1) = sums(packed), sums_alone()
  assert count == count_1 and float(loss) == pytest.approx(float(loss_1), rel=1e-10)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-9), grads, grads_1)
  assert all(float(jnp.abs(g).max()) > 0 for g in jax.tree.leaves(grads["vision"]["layers"]["mlp"]))


def test_distilled_losses_packed_equal_unpacked(parts):
  """By a language model, on text."""
  model, params, examples = parts
  examples = [e for e in examples if not len(e.tiles)]
  taught = Decoder(dataclasses.replace(model.config.decoder, embed_dim=24, num_layers=1))
  teacher_params = nn.meta.unbox(jax.jit(taught.init)(jax.random.key(1), jnp.zeros((1, 8), jnp.int32)))["params"]
  distillation = losses.Distillation(taught, 2.0, 0.7)

  def total(p, b):
    losses_BS, found = losses.distilled_losses(model, p, b, distillation, teacher_params, 4)
    return jnp.sum(losses_BS), (jnp.sum(b.loss_weights), {k: jnp.sum(v) for k, v in found.items()})

  value = jax.jit(jax.value_and_grad(total, has_aux=True))
  add = lambda batches: jax.tree.map(lambda *x: sum(x), *[value(params, b) for b in batches])
  packed, = pack.pack(examples, spec(1, 1, 0))  # of the shape of those alone, so compiled with them
  assert packed.segment_ids.max() == len(examples)
  (loss, (count, found)), grads = add([packed])
  (loss_1, (count_1, found_1)), grads_1 = add(b for e in examples for b in pack.pack([e], spec(1, 1, 0)))
  assert count == count_1 and float(loss) == pytest.approx(float(loss_1), rel=1e-10)
  assert {k: float(v) for k, v in found.items()} == pytest.approx({k: float(v) for k, v in found_1.items()}, rel=1e-10)
  assert float(loss) == pytest.approx(0.3 * float(found["cross_entropy"]) + 0.7 * 4 * float(found["divergence"]), rel=1e-12)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-9), grads, grads_1)


def test_losses_by_source_are_those_of_its_examples_alone(parts):
  model, params, examples = parts
  examples = [e._replace(source=i % 3) for i, e in enumerate(examples)]
  step = jax.jit(state.make_train_step(model, optax.sgd(0.0), 4))
  flat = optimizer_lib.paths(params)
  before = state.TrainState(jnp.int32(0), flat, {}, optax.sgd(0.0).init(flat))
  found = [step(before, b)[1] for b in pack.pack(examples, spec(2, 2, 12))]
  loss = lambda b: value(params, b)[0][0]
  for source in range(3):
    alone = [b for e in examples if e.source == source for b in pack.pack([e], spec(1, 1, 5))]
    assert sum(float(m["loss_sums"][source]) for m in found) == pytest.approx(sum(float(loss(b)) for b in alone), rel=1e-10)
    assert sum(float(m["loss_weights"][source]) for m in found) == sum(b.loss_weights.sum() for b in alone)
  assert not any(m["loss_weights"][3] or m["loss_sums"][3] for m in found)


def test_an_image_is_seen_by_its_own_segment_alone(parts):
  model, params, examples = parts
  batch = next(pack.pack(examples, spec(2, 1, 16)))
  changed = batch._replace(tiles=batch.tiles.copy())
  changed.tiles[0, 0] = 255 - changed.tiles[0, 0]
  apply = jax.jit(functools.partial(losses.apply_batch, model))
  difference = np.abs(apply(params, batch) - apply(params, changed)).max(-1)
  owner = np.argwhere((batch.vision_index >= 0) & (batch.vision_index < 4))  # positions of tile 0
  row, segment = owner[0][0], batch.segment_ids[tuple(owner[0])]
  inside = (batch.segment_ids == segment) & (np.arange(2)[:, None] == row)
  after = inside & (batch.positions >= batch.positions[tuple(owner[-1])])
  assert (difference[after] > 1e-9).all() and (difference[~inside] == 0).all()


def test_tiles_and_index_belong_together(parts):
  model, params, _ = parts
  with pytest.raises(ValueError, match="belong together"):
    jax.eval_shape(model.apply, {"params": params}, jnp.zeros((1, 8), jnp.int32), tiles=jnp.zeros((1, 1, 16, 16, 3), jnp.uint8))


def test_odd_grids_are_padded_then_merged():
  """27 x 27 patches give 14 x 14 tokens; the padding is zero, at the far edges."""
  config = DecoderConfig(vocab_size=8, num_layers=1, embed_dim=6, num_heads=1, num_kv_heads=1, head_dim=6, mlp_dim=8)
  module = Adapter(config, 27, 2, 5)
  x = jax.random.normal(jax.random.key(0), (1, 27 * 27, 3))
  params = module.init(jax.random.key(1), x)
  out = module.apply(params, x)
  assert out.shape == (1, 196, 6)
  p = nn.meta.unbox(params)["params"]
  grid = np.zeros((28, 28, 3), np.float32)
  grid[:27, :27] = np.asarray(x[0]).reshape(27, 27, 3)
  for r, c in ((0, 0), (5, 9), (13, 13), (13, 2)):
    merged = np.concatenate([grid[2 * r, 2 * c], grid[2 * r, 2 * c + 1], grid[2 * r + 1, 2 * c], grid[2 * r + 1, 2 * c + 1]])
    expected = jax.nn.gelu(merged @ p["up"] + p["up_bias"]) @ p["down"] + p["down_bias"]
    np.testing.assert_allclose(out[0, r * 14 + c], expected, atol=1e-5)
