"""The k likeliest tokens and the divergence from them, in chunks of the vocabulary, against the plain forms."""

import functools

import jax
import jax.extend
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from bluelm_jax.kernels import chunked_top
from bluelm_jax.kernels.chunks import Cut
from tests.kernels.test_chunked_losses import arrays
from tests.kernels.test_chunked_losses import assert_equal
from tests.kernels.test_chunked_losses import plain as whole
from tests.kernels.test_chunked_losses import V
from tests.kernels.test_chunked_losses import with_gradients

CUTS = [Cut(1), Cut(24), Cut(4, 2), Cut(1, 8)]
ids = lambda cut: f"{cut.chunks}x{cut.shards}"


def coarse(x, table, targets, log_probs, kept, temperature):
  """log p(target), and KL of the K tokens and all others together by its definition."""
  student = jax.nn.softmax(x @ table / temperature)
  q = jnp.take_along_axis(student, kept, -1)
  log_q = jnp.log(jnp.concatenate([q, 1 - jnp.sum(q, -1, keepdims=True)], -1))
  return whole(x, table, targets, x, table)[0], jnp.sum(jnp.exp(log_probs) * (log_probs - log_q), -1)


top = functools.partial(jax.jit, static_argnums=(3, 4, 5))(chunked_top.top)
distill = functools.partial(jax.jit, static_argnums=(5, 6))(chunked_top.distill)


def teacher(k, temperature=1.0, dtype=np.float64):
  x, table, targets, teacher_x, teacher_table = arrays(dtype)
  return (x, table, targets), top(teacher_x, teacher_table, targets, k, temperature, Cut(1))


@pytest.mark.parametrize("cut", CUTS, ids=ids)
def test_the_likeliest_tokens(cut, float64):
  """As a sort of all logits has them, whether a chunk holds k columns or not."""
  *_, targets, x, table = arrays()
  log_probs, kept, of_target = top(x, table, targets, 5, 2.5, cut)
  expected = jax.nn.log_softmax(x @ table / 2.5)
  order = np.argsort(-expected, -1)[..., :5]
  np.testing.assert_array_equal(kept, order)
  np.testing.assert_allclose(log_probs[..., :-1], np.take_along_axis(expected, order, -1), rtol=1e-12)
  np.testing.assert_allclose(np.exp(log_probs).sum(-1), 1.0, rtol=1e-12)
  np.testing.assert_allclose(of_target, whole(x, table, targets, x, table)[0], rtol=1e-12)


@pytest.mark.parametrize("cut", CUTS, ids=ids)
def test_divergence_and_its_gradients(cut, float64):
  student, (log_probs, kept, _) = teacher(5, 2.5)
  found = with_gradients(lambda *a: chunked_top.distill(*a, 2.5, cut), *student, log_probs, kept)
  assert_equal(found, with_gradients(lambda *a: coarse(*a, 2.5), *student, log_probs, kept), rtol=1e-10, atol=1e-11)
  assert float(found[1].mean()) > 0.1


def test_all_tokens_give_the_whole_divergence_and_fewer_less(float64):
  """Never more with fewer; the rest of one token is that token."""
  cut = Cut(4, 2)
  student, (log_probs, kept, _) = teacher(V, 2.5)
  expected = with_gradients(lambda *a: whole(*a, 2.5), *arrays())
  assert_equal(with_gradients(lambda *a: chunked_top.distill(*a, 2.5, cut), *student, log_probs, kept), expected, rtol=1e-11, atol=1e-12)
  values = [expected[1]]
  for k in (V - 1, 5, 1):
    student, (log_probs, kept, _) = teacher(k, 2.5)
    values.append(distill(*student, log_probs, kept, 2.5, cut)[1])
    assert np.all(values[-1] <= values[-2] + 1e-12) and np.all(values[-1] >= 0)
  np.testing.assert_allclose(values[1], values[0], rtol=1e-10)
  assert values[-1].mean() < 0.9 * values[0].mean()


def test_what_lies_far_from_a_confident_student():
  """A rest of e^-40, which 1 - sum p does not know in float32, and a gradient of the size of the probabilities."""
  x, targets = np.ones((1, 1, 1), np.float32), np.zeros((1, 1), np.int32)
  table = np.float32([[40.0, 0.0, 0.0, -1.0]])
  log_probs, kept = np.log(np.float32([[[0.5, 0.5]]])), np.zeros((1, 1, 1), np.int32)
  divergence = lambda t: chunked_top.distill(x, t, targets, log_probs, kept, 1.0, Cut(2))[1][0, 0]
  found, gradient = jax.jit(jax.value_and_grad(divergence))(table)
  rest = np.log(2 + np.exp(-1.0))
  np.testing.assert_allclose(found, np.log(0.5) + 0.5 * (40.0 - rest), rtol=1e-6)
  shared = 0.5 * np.exp(table[0, 1:] - rest)
  np.testing.assert_allclose(gradient[0], [0.5, *-shared], rtol=1e-5)


def test_bfloat16_is_summed_in_float32():
  x, table, targets, *_ = arrays(ml_dtypes.bfloat16, 0.5)
  _, (log_probs, kept, _) = teacher(5, dtype=np.float32)
  found = with_gradients(lambda *a: chunked_top.distill(*a, 1.0, Cut(3, 2)), x, table, targets, log_probs, kept)
  rounded, eye = jnp.matmul(x, table).astype(np.float32), np.eye(V, dtype=np.float32)
  assert_equal(found[:2], coarse(rounded, eye, targets, log_probs, kept, 1.0), atol=2e-6)
  assert found[0].dtype == jnp.float32 and found[2].dtype == found[3].dtype == jnp.bfloat16


@pytest.mark.parametrize("k", [0, V + 1])
def test_a_vocabulary_must_hold_them(k):
  with pytest.raises(ValueError, match=f"{k} likeliest tokens are not to be had from a vocabulary of 24; use"):
    teacher(k)


@pytest.mark.parametrize("step", ["top", "distill"])
def test_no_logits_of_the_whole_vocabulary(step):
  """Nothing of the traced program has a row's positions times the vocabulary."""
  x, table, targets, teacher_x, teacher_table = arrays(np.float32)
  kept = np.zeros((*targets.shape, 3), np.int32)
  if step == "top":
    traced = jax.make_jaxpr(lambda x, t: chunked_top.top(x, t, targets, 3, 1.0, Cut(4)))(teacher_x, teacher_table)
  else:
    loss = lambda x, t: sum(map(jnp.sum, chunked_top.distill(x, t, targets, np.zeros((*targets.shape, 4), np.float32), kept, 1.0, Cut(4))))
    traced = jax.make_jaxpr(jax.grad(loss, (0, 1)))(x, table)

  def sizes(jaxpr):
    for eqn in jaxpr.eqns:
      yield from (v.aval.size for v in eqn.outvars)
      for inner in jax.extend.core.jaxprs_in_params(eqn.params):
        yield from sizes(inner)

  found = list(sizes(traced.jaxpr))
  assert targets.size * V // 4 in found and max(found) < targets.size * V
