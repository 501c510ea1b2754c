"""FLOPs by hand against other hands, and against the compiler's count of an unrolled model."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from bluelm_jax.models import presets
from bluelm_jax.models import serialize
from bluelm_jax.training import flops


def test_the_3b_by_hand():
  c = presets.bluelm_2_5_3b()
  layer = 2 * (2560 * 2048 * 2 + 2560 * 512 * 2 + 3 * 2560 * 7296)
  assert flops.llm_per_token(c.decoder) == 32 * layer + 2 * 2560 * 100_096
  found = flops.forward(c, flops.packed([4096, 4096], tiles=3))
  assert found.attention == 32 * 4 * 16 * 128 * 2 * (4096 * 4097 / 2)
  patch = 27 * (4 * 1152**2 + 2 * 1152 * 4304) + 588 * 1152
  assert found.vision == 3 * 2 * 729 * patch and found.vision_attention == 3 * 27 * 4 * 729**2 * 1152
  assert found.adapter == 3 * 2 * 196 * 2560 * (4608 + 2560)


def test_six_n_d():
  """A long-known rule: a token costs 6 FLOPs a weight, attention aside."""
  c = presets.bluelm_7b_teacher()
  model, _ = flops.train(c, (".*",), flops.packed([4096]))
  weights = 7_799_574_528 - 100_096 * 4096  # the table of embeddings is looked up
  assert model.llm == pytest.approx(6 * weights * 4096, rel=1e-4)  # norms are not products


@pytest.mark.parametrize("name", ["miniature", "decoder"])
def test_the_compiler_counts_the_same(name):
  """Within 6 %: it counts norms, softmax and the unseen half of attention too."""
  config = presets.miniature()
  config = dataclasses.replace(
      config, decoder=dataclasses.replace(config.decoder, embed_dim=512, mlp_dim=1536, attention="reference"),
      vision=dataclasses.replace(config.vision, embed_dim=384, mlp_dim=1024, attention="reference"))
  tokens = jnp.zeros((1, 128), jnp.int32)
  config = config.decoder if name == "decoder" else config
  model = serialize.build(config)
  extra = {} if name == "decoder" else dict(tiles=jnp.zeros((1, 2, 112, 112, 3), jnp.uint8), vision_index=tokens)
  shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), tokens, **extra))
  counted = jax.jit(lambda p: model.apply(p, tokens, **extra)).lower(shapes).compile().cost_analysis()["flops"]
  found = flops.forward(config, flops.packed([128], tiles=2))
  assert found.total + found.attention == pytest.approx(counted, rel=0.06)


def test_what_is_frozen_costs_less():
  c = presets.bluelm_2_5_3b()
  work = flops.packed([4096], 4)
  once = flops.forward(c, work)
  everything, again = flops.train(c, (".*",), work)
  assert everything.total == pytest.approx(3 * once.total) and again.vision == once.vision
  adapter, _ = flops.train(c, ("adapter/.*",), work)
  assert (adapter.vision, adapter.adapter, adapter.llm) == (once.vision, 3 * once.adapter, 2 * once.llm)


def test_dense_leaves_the_layers_out():
  c = presets.bluelm_2_5_3b()
  work = flops.packed([4096], 4)
  once, table = flops.forward(c, work), flops.output(c, 4096)
  dense, again = flops.train(c, ("vision/.*", "adapter/.*"), work, "dense")
  assert dense == flops.Flops(2 * table.llm, 0.0, 3 * once.vision, 3 * once.vision_attention, 3 * once.adapter)
  assert again.llm == again.attention == 0 and again.vision == once.vision
