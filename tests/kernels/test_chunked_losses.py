"""Losses in chunks of the vocabulary against the plain forms."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from bluelm_jax.kernels import chunked_losses
from bluelm_jax.kernels.chunked_losses import Cut

B, S, D, E, V = 2, 6, 5, 7, 24
CUTS = [Cut(1), Cut(24), Cut(3), Cut(4, 2), Cut(1, 8)]


def arrays(dtype=np.float64, scale=1.0):
  """(x, table, targets, teacher's x, teacher's table), with a target in every pair of columns."""
  rng = np.random.default_rng(0)
  draw = lambda *shape: (scale * rng.normal(size=shape)).astype(dtype)
  targets = (2 * rng.permutation(V // 2) + rng.integers(0, 2, V // 2)).reshape(B, S)
  return draw(B, S, D), draw(D, V), targets, draw(B, S, E), draw(E, V)


def plain(x, table, targets, teacher_x, teacher_table, temperature=1.0):
  """log p(target) by log_softmax, and KL(teacher || student) by its definition."""
  log_probs = jax.nn.log_softmax(x @ table)
  student, teacher = (jax.nn.log_softmax(a @ b / temperature) for a, b in ((x, table), (teacher_x, teacher_table)))
  return jnp.take_along_axis(log_probs, targets[..., None], -1)[..., 0], jnp.sum(jnp.exp(teacher) * (teacher - student), -1)


def with_gradients(f, x, table, *others):
  """Values [B, S] of f, and the gradients of x and the table when every token and every value weighs something else."""

  def total(x, table):
    values = f(x, table, *others)
    return sum(jnp.sum(v * jnp.cos(jnp.arange(v.size) + i).reshape(v.shape)) for i, v in enumerate(values)), values

  (_, values), gradients = jax.jit(jax.value_and_grad(total, (0, 1), has_aux=True))(x, table)
  return (*values, *gradients)


def assert_equal(found, expected, **tolerance):
  for a, b in zip(found, expected, strict=True):
    np.testing.assert_allclose(a, b, **tolerance)


@pytest.mark.parametrize("cut", CUTS, ids=lambda c: f"{c.chunks}x{c.shards}")
def test_log_probs_and_their_gradients(cut, float64):
  found = with_gradients(lambda *a: [chunked_losses.token_log_probs(*a[:3], cut)], *arrays())
  assert_equal(found, with_gradients(lambda *a: plain(*a)[:1], *arrays()), rtol=1e-11, atol=1e-12)
  assert found[0].dtype == jnp.float64


@pytest.mark.parametrize("cut", CUTS, ids=lambda c: f"{c.chunks}x{c.shards}")
def test_divergence_and_its_gradients(cut, float64):
  found = with_gradients(lambda *a: chunked_losses.distill(*a, 2.5, cut), *arrays())
  assert_equal(found, with_gradients(lambda *a: plain(*a, 2.5), *arrays()), rtol=1e-11, atol=1e-12)
  assert float(found[1].mean()) > 0.1


def test_a_teacher_gets_no_gradient():
  x, table, targets, *teacher = arrays(np.float32)
  divergence = lambda *t: jnp.sum(chunked_losses.distill(x, table, targets, *t, 1.0, Cut(2))[1])
  assert not any(np.any(g) for g in jax.jit(jax.grad(divergence, (0, 1)))(*teacher))


def test_a_model_diverges_from_itself_by_nothing():
  x, table, targets, *_ = arrays(np.float32)
  divergence = lambda y: jnp.sum(chunked_losses.distill(y, table, targets, x, table, 2.0, Cut(4))[1])
  found, gradient = jax.jit(jax.value_and_grad(divergence))(x)
  assert found == 0.0 and not np.any(gradient)


@pytest.mark.parametrize("sign", [1, -1])
def test_large_logits_overflow_nothing(sign, float64):
  """The chunk that holds the maximum comes last, or first."""
  x, table, targets = np.ones((1, 1, 1)), np.linspace(0, sign * 2000.0, V)[None], np.zeros((1, 1), int)
  found = chunked_losses.token_log_probs(x, table, targets, Cut(6))
  np.testing.assert_allclose(found, plain(x, table, targets, x, table)[0], rtol=1e-12)


def test_bfloat16_is_summed_in_float32():
  """Values are those of the same rounded logits; gradients come in bfloat16 and are near those in float32."""
  x, table, targets, *teacher = arrays(ml_dtypes.bfloat16, 0.5)
  wide = lambda *many: [a.astype(np.float32) for a in many]
  chunked = lambda x, table: chunked_losses.distill(x, table, targets, *teacher, 1.0, Cut(3, 2))
  log_probs, divergence, *gradients = with_gradients(chunked, x, table)
  assert log_probs.dtype == divergence.dtype == jnp.float32
  logits, teacher_logits = wide(jnp.matmul(x, table), jnp.matmul(*teacher))
  eye = np.eye(V, dtype=np.float32)
  assert_equal((log_probs, divergence), plain(logits, eye, targets, teacher_logits, eye), atol=2e-6)
  for a, b in zip(gradients, with_gradients(chunked, *wide(x, table))[2:]):
    assert a.dtype == jnp.bfloat16
    np.testing.assert_allclose(*wide(a, b), atol=0.03 * float(jnp.abs(b).max()))


@pytest.mark.parametrize("cut", [Cut(5), Cut(0), Cut(12, 4)], ids=lambda c: f"{c.chunks}x{c.shards}")
def test_a_vocabulary_must_divide(cut):
  words = f"a vocabulary of 24 on {cut.shards} shards does not divide into {cut.chunks} chunks; use a divisor of {24 // cut.shards}"
  with pytest.raises(ValueError, match=words):
    jax.eval_shape(lambda *a: chunked_losses.token_log_probs(*a, cut), *arrays(np.float32)[:3])
