"""Dividing less of the state changes where it lies, not what is learnt."""

import jax
import numpy as np
import pytest

from bluelm_jax.data import loader
from bluelm_jax.data.tokenizer import Tokenizer
from bluelm_jax.models import serialize
from bluelm_jax.sharding import rules
from bluelm_jax.training import optimizer as optimizer_lib
from bluelm_jax.training import stage
from tests.training import faulty
from tests.training.presets import preset  # noqa: F401  (for every test here)


def two_steps(zero):
  """The state after two steps of the trainer's own step on eight devices, and the last loss."""
  config = faulty.config()
  config.zero, config.data.rows = zero, 8
  model_config, mesh = stage.described_model(config), rules.make_mesh({"fsdp": 8})
  spec, chat = stage.batch_shape(config, model_config, mesh, Tokenizer())
  batches = loader.batches(config.data.sources, chat, spec, 0)
  model, tx = serialize.build(model_config), optimizer_lib.make_optimizer(config.optimizer, config.schedule, config.steps)
  create, _, shardings = stage.abstract_state(config, model, tx, mesh)
  state = jax.jit(create, out_shardings=shardings)(jax.random.key(0))
  step = stage.jit_step(config, model, tx, shardings)
  with jax.set_mesh(mesh):
    for _ in range(2):
      state, metrics = step(state, stage.put_batch(next(batches), rules.batch_sharding(mesh)))
  return state, float(metrics["loss"])


def test_whole_weights_train_as_divided_ones_do():
  (divided, loss), (whole, loss_whole) = two_steps(3), two_steps(2)
  assert loss_whole == pytest.approx(loss, rel=1e-5)
  name = "layers/mlp/up"
  shards = lambda x: x.addressable_shards[0].data.size / x.size
  assert shards(divided.trainable[name]) == 1 / 8 and shards(whole.trainable[name]) == 1
  moments = [x for x in jax.tree.leaves(whole.opt_state) if x.shape == whole.trainable[name].shape]
  assert moments and all(shards(x) == 1 / 8 for x in moments)
  for path, x in divided.trainable.items():
    np.testing.assert_allclose(whole.trainable[path], x, atol=2e-5, err_msg=path)
