"""Meshes, and that eight devices train as one does."""

import dataclasses
import functools
import pathlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bluelm_jax.data import loader
from bluelm_jax.data.tokenizer import Tokenizer
from bluelm_jax.models import presets
from bluelm_jax.models import serialize
from bluelm_jax.sharding import rules
from bluelm_jax.training import defaults
from bluelm_jax.training import stage
from bluelm_jax.training import state

ROOT = pathlib.Path(__file__).parents[2]


@pytest.mark.parametrize("shape,words", [
    ({"fsdp": 3}, "does not cover 8 devices"), ({"pipe": 2}, "mesh axis 'pipe' is unknown"), ({"fsdp": -1, "tensor": 3}, "does not cover")])
def test_bad_meshes_are_refused(shape, words):
  with pytest.raises(ValueError, match=words):
    rules.make_mesh(shape)


def test_the_open_axis_takes_the_rest():
  assert dict(rules.make_mesh({"fsdp": -1, "tensor": 2}).shape) == {"data": 1, "fsdp": 4, "context": 1, "tensor": 2}


def test_a_dimension_that_does_not_divide_is_named():
  boxed = {"w": nn.LogicallyPartitioned(jnp.zeros((6, 7)), ("embed", "mlp"))}
  with pytest.raises(ValueError, match=r"w \(6, 7\): 7 does not divide"):
    rules.param_shardings(rules.make_mesh({"fsdp": 2, "tensor": 4}), boxed)


@pytest.fixture(scope="module")
def batch_and_model():
  """A joint batch in one row group per data rank, and a float32 model whose heads divide."""
  config = defaults.load(f"{ROOT}/configs/stages/joint.py:miniature")
  config.data.update(rows=8, length=256, tile_slots=4)
  small = presets.miniature()
  model_config = dataclasses.replace(
      small, vision=dataclasses.replace(small.vision, embed_dim=64, num_heads=2, mlp_dim=64, num_layers=1),
      decoder=dataclasses.replace(small.decoder, num_layers=2, embed_dim=64, mlp_dim=96))
  return config, model_config


def one_step(config, model_config, mesh, batch):
  """Loss, gradient norm and updated parameters of the trainer's own step."""
  import optax

  model = serialize.build(model_config)
  init = functools.partial(model.init, method="init_all")
  boxed = jax.eval_shape(init, jax.random.key(0), jnp.zeros((1, 8), jnp.int32))["params"]
  shardings = rules.param_shardings(mesh, boxed)
  params = jax.jit(lambda k: nn.meta.unbox(init(k, jnp.zeros((1, 8), jnp.int32))["params"]), out_shardings=shardings)(jax.random.key(0))
  from bluelm_jax.training import optimizer as optimizer_lib

  flat, tx = optimizer_lib.paths(params), optax.sgd(1.0)
  before = state.TrainState(jnp.int32(0), flat, {}, tx.init(flat))
  with jax.set_mesh(mesh):
    after, metrics = jax.jit(state.make_train_step(model, tx))(before, stage.put_batch(batch, rules.batch_sharding(mesh)))
  kinds = {str(v.sharding.spec) for v in after.trainable.values()}
  return jax.device_get(metrics), jax.device_get(after.trainable), kinds


@pytest.mark.parametrize("shape", [{"data": 2, "fsdp": 2, "tensor": 2}, {"fsdp": 4, "tensor": 2}, {"data": 8}])
def test_eight_devices_step_as_one(batch_and_model, shape):
  config, model_config = batch_and_model
  mesh = rules.make_mesh(shape)
  spec, chat = stage.batch_shape(config, model_config, mesh, Tokenizer())
  batch = next(loader.batches(config.data.sources, chat, spec, 0))
  found, params, kinds = one_step(config, model_config, mesh, batch)
  alone = rules.make_mesh({"data": 1}, jax.devices()[:1])
  expected, params_1, _ = one_step(config, model_config, alone, batch)
  assert found["loss_tokens"] == expected["loss_tokens"] and found["loss"] == pytest.approx(expected["loss"], rel=1e-5)
  assert found["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-4)
  for path in params:
    np.testing.assert_allclose(params[path], params_1[path], atol=2e-5, err_msg=path)
  assert len(kinds) > 1 or shape == {"data": 8}  # really split
