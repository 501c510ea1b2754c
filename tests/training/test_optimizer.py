"""Freezing, learning-rate factors, what is decayed, and how moments are kept; test_schedules.py and test_muon.py have the rest."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bluelm_jax.training import defaults
from bluelm_jax.training import muon
from bluelm_jax.training import optimizer
from tests import hurry


def config(**changes):
  c = defaults.stage()
  c.optimizer.update(changes)
  c.schedule.update(kind="constant", warmup=0)
  return c


PARAMS = {
    "decoder/embedding": jnp.ones((6, 4)), "decoder/layers/mlp/up": jnp.ones((2, 4, 8)), "decoder/layers/attention/q": jnp.ones((2, 4, 2, 4)),
    "decoder/layers/attention/q_bias": jnp.ones((2, 2, 4)), "decoder/layers/mlp_norm/scale": jnp.ones((2, 4)), "vision/patch": jnp.ones((12, 4))}


def one_update(c, grad=0.0):
  tx = optimizer.make_optimizer(c.optimizer, c.schedule, 100)
  grads = {p: jnp.full_like(v, grad) for p, v in PARAMS.items()}
  state = tx.init(PARAMS)
  _, state = tx.update(grads, state, PARAMS)  # the first step of a warm-up has no learning rate
  return tx.update(grads, state, PARAMS)[0]


def test_unknown_kinds_name_the_known():
  c = config()
  c.schedule.kind = "step"
  with pytest.raises(ValueError, match="use constant, cosine, linear, wsd or multistep"):
    optimizer.make_optimizer(c.optimizer, c.schedule, 10)
  with pytest.raises(ValueError, match="use adamw, muon or moonlight"):
    optimizer.make_optimizer(config(name="sgd").optimizer, config().schedule, 10)


@pytest.mark.parametrize("name", ["adamw", "muon", "moonlight"])
def test_only_matrices_decay(name):
  """Without a gradient, what moves is what weight decay moves."""
  moved = {p for p, u in one_update(config(name=name, weight_decay=0.1)).items() if float(jnp.abs(u).max()) > 0}
  matrices = {"decoder/layers/mlp/up", "decoder/layers/attention/q"}
  assert moved == (matrices if name == "muon" else matrices | {"decoder/embedding", "vision/patch"})


def test_factors_scale_their_parameters_alone():
  c = config(weight_decay=0.0)
  plain = one_update(c, 0.3)
  defaults.fill(c.optimizer.lr_factors, vision=dict(path="vision/.*", factor=0.1))
  scaled = one_update(c, 0.3)
  for p in PARAMS:
    np.testing.assert_allclose(scaled[p], plain[p] * (0.1 if p.startswith("vision") else 1.0), rtol=1e-6)


def test_decay_by_pattern():
  for name in ("adamw", "muon", "moonlight"):
    c = config(name=name, weight_decay=0.1, decayed=(".*/scale", "decoder/layers/.*/q"))
    moved = {p for p, u in one_update(c).items() if float(jnp.abs(u).max()) > 0}
    assert moved == {"decoder/layers/mlp_norm/scale", "decoder/layers/attention/q"}


def steps(tx, count=4):
  """Parameters and optimizer state after some updates with the same random gradients."""
  rng, params = np.random.default_rng(0), PARAMS
  state, update = tx.init(params), jax.jit(tx.update, compiler_options=hurry.ALIKE)
  for _ in range(count):
    grads = {p: jnp.array(rng.standard_normal(v.shape), jnp.float32) for p, v in PARAMS.items()}
    updates, state = update(grads, state, params)
    params = optax.apply_updates(params, updates)
  return params, state


def decayed(params):
  return {p: v.ndim > 1 and not p.endswith(("scale", "bias")) for p, v in params.items()}


def make(c):
  c.optimizer.clip_norm = 1e9
  return optimizer.make_optimizer(c.optimizer, c.schedule, 100)


@pytest.mark.parametrize("dtype", ["", "float32"])
def test_adamw_is_optax_bit_for_bit(dtype):
  found = steps(make(config(weight_decay=0.1, moment_dtype=dtype)))[0]
  expected = steps(optax.adamw(1e-3, 0.9, 0.95, 1e-8, weight_decay=0.1, mask=decayed))[0]
  for p in PARAMS:
    np.testing.assert_array_equal(found[p], expected[p])


def test_muon_is_optax_bit_for_bit():
  axes = lambda params: {p: (a := muon.axes(p)) and optax.contrib.MuonDimensionNumbers(*a) for p in params}
  found = steps(make(config(name="muon", weight_decay=0.1)))[0]
  expected = steps(optax.contrib.muon(0.02, weight_decay=0.1, adam_b2=0.95, adam_learning_rate=1e-3, muon_weight_dimension_numbers=axes))[0]
  for p in PARAMS:
    np.testing.assert_array_equal(found[p], expected[p])


@pytest.mark.parametrize("name", ["adamw", "muon", "moonlight"])
def test_moments_in_bfloat16(name):
  """Every moment is kept in it, and what is learnt differs by its rounding alone."""
  (narrow, state), (wide, _) = (steps(make(config(name=name, moment_dtype=dtype))) for dtype in ("bfloat16", "float32"))
  moments = [x for x in jax.tree.leaves(state) if x.ndim > 1]
  assert moments and all(x.dtype == jnp.bfloat16 for x in moments)
  for p in PARAMS:
    moved = np.abs(wide[p] - PARAMS[p]).max()
    assert 0 < np.abs(narrow[p] - wide[p]).max() < 0.03 * moved, p


def test_a_moment_in_bfloat16_is_rounded_once_a_step():
  tx = make(config(moment_dtype="bfloat16"))
  rng, p = np.random.default_rng(0), "vision/patch"
  state, params, nu = tx.init(PARAMS), PARAMS, jnp.zeros(PARAMS[p].shape, jnp.bfloat16)
  for _ in range(3):
    grads = {q: jnp.array(rng.standard_normal(v.shape), jnp.float32) for q, v in PARAMS.items()}
    _, state = tx.update(grads, state, params)
    nu = (0.95 * nu.astype(jnp.float32) + (1 - 0.95) * grads[p] ** 2).astype(jnp.bfloat16)
  kept = optax.tree.get(state, "nu")[p]
  np.testing.assert_array_equal(kept.astype(jnp.float32), nu.astype(jnp.float32))


def test_freezing_by_pattern():
  trainable, frozen = optimizer.split_trainable(optimizer.merge(PARAMS, {}), ("vision/.*", ".*/q_bias"))
  assert set(trainable) == {"vision/patch", "decoder/layers/attention/q_bias"} and set(frozen) == set(PARAMS) - set(trainable)
  with pytest.raises(ValueError, match="matches no parameter"):
    optimizer.split_trainable(optimizer.merge(PARAMS, {}), ("visoin/.*",))
