"""Schedules, freezing, learning-rate factors, and what is decayed."""

import jax.numpy as jnp
import numpy as np
import pytest

from bluelm_jax.training import defaults
from bluelm_jax.training import optimizer


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


@pytest.mark.parametrize("kind,at,expected", [
    ("constant", 50, 1.0), ("linear", 10, 1.0), ("linear", 55, 0.55), ("linear", 100, 0.1), ("cosine", 55, 0.55), ("cosine", 100, 0.1),
    ("wsd", 69, 1.0), ("wsd", 85, 0.55), ("wsd", 100, 0.1), ("wsd", 5, 0.5), ("cosine", 0, 0.0)])
def test_schedules(kind, at, expected):
  c = defaults.stage().schedule
  c.update(kind=kind, warmup=10, decay_share=0.3, final=0.1)
  assert float(optimizer.make_schedule(c, 2.0, 100)(at)) == pytest.approx(2 * expected, abs=0.02)


def test_unknown_kinds_name_the_known():
  c = config()
  c.schedule.kind = "step"
  with pytest.raises(ValueError, match="use constant, cosine, linear or wsd"):
    optimizer.make_optimizer(c.optimizer, c.schedule, 10)
  with pytest.raises(ValueError, match="use adamw or muon"):
    optimizer.make_optimizer(config(name="sgd").optimizer, config().schedule, 10)


@pytest.mark.parametrize("name", ["adamw", "muon"])
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


def test_muon_treats_each_layer_as_its_own_matrix():
  """The update of a stacked matrix is, per layer, orthogonal."""
  c = config(name="muon", weight_decay=0.0)
  tx = optimizer.make_optimizer(c.optimizer, c.schedule, 100)
  rng = np.random.default_rng(0)
  params = {"decoder/layers/mlp/up": jnp.zeros((2, 4, 8))}
  grads = {"decoder/layers/mlp/up": jnp.array(rng.standard_normal((2, 4, 8)), jnp.float32)}
  state = tx.init(params)
  _, state = tx.update(grads, state, params)
  update = np.asarray(tx.update(grads, state, params)[0]["decoder/layers/mlp/up"])
  for layer in update:
    s = np.linalg.svd(layer, compute_uv=False)
    assert s.max() / s.min() < 2.0  # Newton-Schulz brings singular values near one another
    assert np.linalg.cond(np.asarray(grads["decoder/layers/mlp/up"])[0]) > 2.0


def test_freezing_by_pattern():
  trainable, frozen = optimizer.split_trainable(optimizer.merge(PARAMS, {}), ("vision/.*", ".*/q_bias"))
  assert set(trainable) == {"vision/patch", "decoder/layers/attention/q_bias"} and set(frozen) == set(PARAMS) - set(trainable)
  with pytest.raises(ValueError, match="matches no parameter"):
    optimizer.split_trainable(optimizer.merge(PARAMS, {}), ("visoin/.*",))
