"""Products whose gradients are written by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bluelm_jax.models import layers


@pytest.mark.parametrize("inner,outer", [(3, 7), (7, 3), (5, 5)])
@pytest.mark.parametrize("rows", [(4,), (2, 3)])
def test_product_has_the_gradients_of_a_plain_one(rows, inner, outer):
  keys = jax.random.split(jax.random.key(inner), 3)
  x, weight, d_out = (jax.random.normal(k, s) for k, s in zip(keys, ((*rows, inner), (inner, outer), (*rows, outer))))
  out, back = jax.vjp(layers.product, x, weight)
  expected, plain = jax.vjp(jnp.matmul, x, weight)
  np.testing.assert_array_equal(out, expected)
  for found, wanted in zip(back(d_out), plain(d_out), strict=True):
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("inner,outer", [(3, 7), (7, 3)])
def test_product_keeps_the_dtype_of_its_weight(inner, outer):
  x, weight = jnp.ones((2, inner), jnp.bfloat16), jnp.ones((inner, outer), jnp.bfloat16)
  d_x, d_weight = jax.grad(lambda *args: layers.product(*args).astype(jnp.float32).sum(), argnums=(0, 1))(x, weight)
  assert (d_x.dtype, d_weight.dtype, d_weight.shape) == (jnp.bfloat16, jnp.bfloat16, weight.shape)
