"""Held-out losses of stages that do not predict the next token alone."""

import flax.linen as nn
import jax
import numpy as np
import pytest

from bluelm_jax.data import loader
from bluelm_jax.data.tokenizer import Tokenizer
from bluelm_jax.models import serialize
from bluelm_jax.sharding import rules
from bluelm_jax.training import defaults
from bluelm_jax.training import losses
from bluelm_jax.training import online
from bluelm_jax.training import optimizer
from bluelm_jax.training import stage
from tests.bench import machine
from tests.sharding import step


@pytest.mark.parametrize("name,objective", [("vision", "dense"), ("distil", "lm")])
def test_other_objectives(name, objective):
  """A student's loss is its own cross-entropy."""
  c = defaults.load(f"{machine.ROOT}/configs/stages/{name}.py:miniature")
  model_config, mesh = step.model_config(), rules.make_mesh({"data": 1}, jax.devices()[:1])
  model = serialize.build(model_config)
  c.data.rows, c.data.length, c.data.tile_slots = 1, 392, 8 * (objective == "dense")
  with c.unlocked():
    c.evaluate.sources = c.data.sources
  spec, chat = stage.batch_shape(c, model_config, mesh, Tokenizer())
  batch = next(loader.batches(c.evaluate.sources, chat, spec, online.SEED))
  params = jax.jit(lambda key: nn.meta.unbox(model.init(key, batch.tokens[:, :8], method="init_all")["params"]))(jax.random.key(0))
  flat = optimizer.paths(params)
  sums, weights = online.jit_losses(c, model, mesh)(flat, {}, batch)
  expected = np.asarray(jax.jit(lambda p: losses.token_losses(model, p, batch, objective))(params))
  assert expected.sum() > 1
  for i in range(len(c.evaluate.sources)):
    here = batch.sources == i
    assert sums[i] == pytest.approx(expected[here].sum(), rel=1e-5) and weights[i] == batch.loss_weights[here].sum()
