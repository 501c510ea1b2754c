"""Rotary embeddings: the geometry, and transformers' frequencies for each scaling."""

import jax.numpy as jnp
import numpy as np
import pytest
import transformers
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from bluelm_jax.kernels import rotary
from bluelm_jax.kernels.rotary import RopeScaling


def test_norms_are_kept_and_scores_depend_on_distance():
  rng = np.random.default_rng(0)
  q, k = (jnp.array(rng.standard_normal((1, 1, 1, 16)), jnp.float32) for _ in "qk")
  turned = lambda x, at: rotary.apply_rotary(x, rotary.rotary_table(jnp.full((1, 1), at), 16, 1e4))
  assert float(jnp.linalg.norm(turned(q, 7))) == pytest.approx(float(jnp.linalg.norm(q)), rel=1e-5)
  score = lambda a, b: float(jnp.sum(turned(q, a) * turned(k, b)))
  assert score(5, 2) == pytest.approx(score(105, 102), abs=1e-3)
  assert abs(score(5, 2) - score(5, 3)) > 1e-3
  np.testing.assert_array_equal(turned(q, 0), q)


@pytest.mark.parametrize("scaling,theirs", [
    (RopeScaling("linear", 4.0, 32), {"rope_type": "linear", "factor": 4.0}),
    (RopeScaling("llama3", 8.0, 32, low_freq_factor=1.0, high_freq_factor=4.0),
     {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 32, "low_freq_factor": 1.0, "high_freq_factor": 4.0}),
    (RopeScaling("yarn", 8.0, 32), {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 32}),
    (RopeScaling("yarn", 4.0, 64, beta_fast=16.0, beta_slow=2.0, attention_factor=1.2),
     {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "beta_fast": 16.0, "beta_slow": 2.0, "attention_factor": 1.2}),
])
def test_scalings_equal_transformers(scaling, theirs):
  config = transformers.LlamaConfig(
      hidden_size=128, num_attention_heads=2, max_position_embeddings=256, rope_parameters={**theirs, "rope_theta": 5e5})
  expected, factor = ROPE_INIT_FUNCTIONS[theirs["rope_type"]](config, "cpu")
  cos, sin = rotary.rotary_table(jnp.arange(200)[None], 64, 5e5, scaling)
  angles = np.arange(200)[:, None] * expected.numpy()
  np.testing.assert_allclose(cos[0, :, 0], np.cos(angles) * factor, atol=3e-5)
  np.testing.assert_allclose(sin[0, :, 0], np.sin(angles) * factor, atol=3e-5)
