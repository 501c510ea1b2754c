"""Log-probabilities of targets against the textbook form."""

import jax
import jax.numpy as jnp
import numpy as np

from bluelm_jax.kernels.cross_entropy import token_log_probs


def test_value_and_gradient(float64):
  rng = np.random.default_rng(0)
  logits, targets = jnp.array(rng.normal(size=(2, 5, 11)) * 30), jnp.array(rng.integers(0, 11, (2, 5)))
  plain = lambda x: jnp.take_along_axis(jnp.log(jax.nn.softmax(x)), targets[..., None], -1)[..., 0]
  np.testing.assert_allclose(token_log_probs(logits, targets), plain(logits), rtol=1e-12)
  grads = [jax.grad(lambda x: jnp.sum(f(x) * jnp.arange(10).reshape(2, 5)))(logits) for f in (lambda x: token_log_probs(x, targets), plain)]
  np.testing.assert_allclose(*grads, atol=1e-9)


def test_bfloat16_logits_are_summed_in_float32():
  logits = jnp.zeros((1, 1, 4096), jnp.bfloat16)
  out = token_log_probs(logits, jnp.zeros((1, 1), jnp.int32))
  assert out.dtype == jnp.float32 and abs(float(out[0, 0]) + np.log(4096)) < 1e-5
