"""Scores: what they are, and what does not reach them."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bluelm_jax.compression import choose
from bluelm_jax.compression import importance
from bluelm_jax.interop import load
from bluelm_jax.models import layers
from bluelm_jax.models.decoder import Attention
from bluelm_jax.models.decoder import Decoder
from bluelm_jax.models.decoder import SwiGLU
from bluelm_jax.sharding import rules
from bluelm_jax.training import optimizer
from tests.compression import planted

CONFIG = dataclasses.replace(planted.STUDENT, num_layers=3)
FLOAT32 = dataclasses.replace(CONFIG, dtype="float32", param_dtype="float32")


def random_params(config=FLOAT32, seed=1):
  rng = np.random.default_rng(seed)
  return {p: 0.4 * rng.standard_normal(s) + ("scale" in p) for p, s in load.param_shapes(config).items()}


def segments():
  """Rows of four tokens, each a segment of its own, so that attention gives every token its own value; and padding."""
  return jnp.array([[1, 2, 3, 4], [1, 2, 0, 0], [1, 0, 0, 0]], jnp.int32)


def same(a, b, rtol=1e-5):
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=1e-6), a, b)


def test_scores_are_what_they_say(float64):
  """Against sums over the outputs that flax captures, token by token."""
  params, ids, parts = random_params(), planted.tokens((3, 4)), segments()
  found = planted.measure(CONFIG, params, ids, parts)
  watched = lambda module, _: isinstance(module, (layers.RMSNorm, Attention, SwiGLU))
  tree = optimizer.merge(params, {})
  apply = functools.partial(Decoder(CONFIG).apply, capture_intermediates=watched, mutable=["intermediates"])
  _, variables = jax.jit(apply)({"params": tree}, ids, segment_ids=parts)
  captured = {p: np.asarray(jax.tree.leaves(v)[0]) for p, v in optimizer.paths(variables["intermediates"]).items()}
  value = lambda name: captured[f"{name}/__call__"]
  real = np.asarray(parts) > 0
  score = lambda x: np.sqrt(sum(np.mean(np.abs(x[b][real[b]]), axis=0) ** 2 for b in range(3)))
  x = params["embedding"][np.asarray(ids)]
  for l in range(3):
    normed, normed_mlp = value("layers/attention_norm")[l], value("layers/mlp_norm")[l]
    np.testing.assert_allclose(found.width[l], score(normed), rtol=1e-5)
    np.testing.assert_allclose(found.width[3 + l], score(normed_mlp), rtol=1e-5)
    np.testing.assert_allclose(found.share[l], np.mean((x**2 / np.sum(x**2, -1, keepdims=True))[real], axis=0), rtol=1e-5)
    gate, up, v = (params[f"layers/{n}"][l] for n in ("mlp/gate", "mlp/up", "attention/v"))
    np.testing.assert_allclose(found.neurons[l], score(normed_mlp @ gate / (1 + np.exp(-normed_mlp @ gate)) * (normed_mlp @ up)), rtol=1e-5)
    heads = np.repeat(np.linalg.norm(np.einsum("bsd,dkh->bskh", normed, v), axis=-1), 2, axis=-1)
    np.testing.assert_allclose(found.heads[l], score(heads), rtol=1e-5)
    after = x + value("layers/attention")[l] + value("layers/mlp")[l]
    cos = np.sum(x * after, -1) / np.linalg.norm(x, axis=-1) / np.linalg.norm(after, axis=-1)
    np.testing.assert_allclose(found.layers[l], np.mean((1 - cos)[real]), rtol=1e-5)
    x = after
  np.testing.assert_allclose(found.width[6], score(value("final_norm")), rtol=1e-5)
  np.testing.assert_allclose(found.share.sum(axis=1), 1.0, rtol=1e-6)


def test_padding_counts_nowhere():
  params, ids = random_params(), planted.tokens((3, 4))
  garbage = jnp.where(segments() > 0, ids, 39 - ids)
  assert not np.array_equal(ids, garbage)
  jax.tree.map(np.testing.assert_array_equal, *(planted.measure(FLOAT32, params, x, segments()) for x in (ids, garbage)))


@pytest.mark.parametrize("execution", [dict(scan_layers=False), dict(remat="full")])
def test_the_layer_stack_may_be_unrolled_or_rematerialised(execution, float64):
  params, ids = random_params(), planted.tokens()
  same(planted.measure(CONFIG, params, ids), planted.measure(dataclasses.replace(CONFIG, **execution), params, ids))


def test_batches_add_up(float64):
  params, ids = random_params(), planted.tokens((6, 8))
  parts = [planted.rows(CONFIG, params, ids[at]) for at in (slice(1), slice(1, 6))]
  same(importance.gather(parts), planted.measure(CONFIG, params, ids))


def test_nothing_is_computed_unwatched():
  """Without an interceptor a forward pass is the one of a decoder that has no taps, and makes no variables."""
  model, ids = Decoder(FLOAT32), planted.tokens((1, 4))
  variables = jax.eval_shape(model.init, jax.random.key(0), ids)
  assert set(variables) == {"params"}
  program = lambda: str(jax.make_jaxpr(model.apply)(nn.meta.unbox(variables), ids))
  with_taps = program()
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(layers, "Tap", lambda name: lambda *values: None)
    assert program() == with_taps
  assert str(jax.make_jaxpr(lambda v: importance.watch(functools.partial(model.apply, v, ids), jnp.ones((1, 4), jnp.int32)))(nn.meta.unbox(variables))) != with_taps


@pytest.mark.parametrize("shape", [{"fsdp": 8}, {"data": 2, "context": 2, "tensor": 2}])
def test_one_device_and_eight_keep_the_same(shape):
  config = dataclasses.replace(FLOAT32, embed_dim=32)
  student = dataclasses.replace(config, num_layers=2, embed_dim=16, num_heads=2, num_kv_heads=1, mlp_dim=12)
  params = {p: x.astype(np.float32) for p, x in random_params(config).items()}
  ids, parts = planted.tokens((8, 16)), jnp.array([[1] * 9 + [2] * 4 + [0] * 3] * 8, jnp.int32)
  alone = planted.measure(config, params, ids, parts)
  mesh = rules.make_mesh(shape)
  with jax.set_mesh(mesh):
    boxed = jax.eval_shape(Decoder(config).init, jax.random.key(0), ids)["params"]
    placed = jax.device_put(optimizer.merge(params, {}), rules.param_shardings(mesh, boxed))
    put = lambda x: jax.device_put(x, rules.batch_sharding(mesh))

    @functools.partial(jax.jit, out_shardings=rules.replicated(mesh))
    def rows(p, ids, parts):
      return importance.watch(functools.partial(Decoder(config).apply, {"params": p}, ids, segment_ids=parts), parts)[1:]

    split = importance.gather([jax.device_get(rows(placed, put(ids), put(parts)))])
  same(alone, split, rtol=1e-4)
  first, second = (choose.choose(x, config, student) for x in (alone, split))
  assert all(np.array_equal(a, b) for a, b in zip(first[:-1], second[:-1]))
