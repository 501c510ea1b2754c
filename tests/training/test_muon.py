"""Muon's directions against float64 singular value decompositions, and Moonlight's steps against numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bluelm_jax.training import defaults
from bluelm_jax.training import muon
from bluelm_jax.training import optimizer

UP, Q, O = "decoder/layers/mlp/up", "decoder/layers/attention/q", "decoder/layers/attention/o"


def matrices(*shape, seed=0):
  return np.random.default_rng(seed).standard_normal(shape)


def quintic(s):
  a, b, c = muon.COEFFICIENTS
  for _ in range(5):
    s = a * s + b * s**3 + c * s**5
  return s


@pytest.mark.parametrize("shape", [(24, 24), (16, 40), (40, 16), (3, 32, 64)])
def test_a_direction_keeps_singular_vectors_and_evens_out_singular_values(shape):
  x = matrices(*shape)
  found = np.asarray(muon.orthogonal(jnp.array(x, jnp.float32)), np.float64)
  u, s, vt = np.linalg.svd(x, full_matrices=False)
  s /= np.sqrt((s**2).sum(-1, keepdims=True))
  np.testing.assert_allclose(found, (u * quintic(s)[..., None, :]) @ vt, atol=1e-4)
  cosine = (found * (u @ vt)).sum((-2, -1)) / np.linalg.norm(found, axis=(-2, -1)) / np.sqrt(s.shape[-1])
  assert (cosine > 0.95).all()
  if shape != (24, 24):  # the smallest values of a square one need more steps
    values = np.linalg.svd(found, compute_uv=False)
    assert 0.5 < values.min() and values.max() < 1.5 and np.linalg.cond(x).max() > 2


def test_optax_orthogonalises_alike():
  """Of one gradient without momentum, its directions are ours."""
  x = jnp.array(matrices(2, 32, 64), jnp.float32)
  tx = optax.contrib.scale_by_muon(muon.COEFFICIENTS, weight_dimension_numbers={UP: optax.contrib.MuonDimensionNumbers((1,), (2,))})
  found = tx.update({UP: x}, tx.init({UP: x}))[0][UP]
  np.testing.assert_allclose(found, muon.orthogonal(x), atol=1e-5)


@pytest.mark.parametrize("path,shape", [(UP, (2, 32, 96)), (UP, (2, 96, 32)), (Q, (2, 64, 4, 16)), (O, (2, 4, 16, 128)), ("decoder/x/up", (64, 64))])
def test_updates_of_moonlight_are_as_large_as_those_of_adamw(path, shape):
  tx = muon.moonlight()
  x = {path: jnp.array(matrices(*shape), jnp.float32)}
  rms = float(jnp.sqrt(jnp.mean(tx.update(x, tx.init(x))[0][path] ** 2)))
  assert 0.2 * 0.7 < rms < 0.2 * 1.2


def test_moonlight_steps_as_published():
  """Three steps in float64: momentum b = 0.95 b + g, Nesterov's g + 0.95 b, W <- (1 - rate decay) W - rate 0.2 sqrt(max(I, O)) O."""
  c = defaults.stage()
  c.optimizer.update(name="moonlight", learning_rate=0.01, weight_decay=0.3, clip_norm=1e9)
  c.schedule.update(kind="constant", warmup=0)
  tx = optimizer.make_optimizer(c.optimizer, c.schedule, 100)
  table = "decoder/embedding"
  params = {Q: jnp.array(matrices(2, 16, 2, 24), jnp.float32), table: jnp.array(matrices(8, 16), jnp.float32)}
  adamw = optax.adamw(0.01, 0.9, 0.95, 1e-8, weight_decay=0.3)
  state, beside, expected_table = tx.init(params), adamw.init(params[table]), params[table]
  w, buffer = np.asarray(params[Q], np.float64).reshape(2, 16, 48), 0.0
  for step in range(3):
    grads = {p: jnp.array(matrices(*v.shape, seed=step + 1), jnp.float32) for p, v in params.items()}
    updates, state = tx.update(grads, state, params)
    params = optax.apply_updates(params, updates)
    g = np.asarray(grads[Q], np.float64).reshape(2, 16, 48)
    buffer = 0.95 * buffer + g
    u, s, vt = np.linalg.svd(g + 0.95 * buffer, full_matrices=False)
    direction = (u * quintic(s / np.sqrt((s**2).sum(-1, keepdims=True)))[..., None, :]) @ vt
    w = (1 - 0.01 * 0.3) * w - 0.01 * 0.2 * np.sqrt(48) * direction
    updates, beside = adamw.update(grads[table], beside, expected_table)
    expected_table = optax.apply_updates(expected_table, updates)
  np.testing.assert_allclose(np.asarray(params[Q]).reshape(2, 16, 48), w, atol=2e-6)
  np.testing.assert_array_equal(params[table], expected_table)


@pytest.mark.parametrize("name", ["muon", "moonlight"])
def test_each_layer_is_a_matrix_of_its_own(name):
  """The other layer's gradient changes nothing."""
  tx = muon.jordan(1e-8) if name == "muon" else muon.moonlight()
  x = matrices(2, 16, 32)
  alone, beside = ({UP: jnp.array(v, jnp.float32)} for v in (x, np.stack([x[0], 1e3 * x[1] + 1.0])))
  first = lambda g: jax.tree.leaves(tx.update(g, tx.init(g))[0])[0][0]
  np.testing.assert_allclose(first(alone), first(beside), atol=1e-6)
