"""Meshes, and that eight devices train as one does."""

import functools
import json
import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bluelm_jax.interop import load
from bluelm_jax.models import serialize
from bluelm_jax.sharding import rules
from bluelm_jax.training import optimizer
from tests import doors
from tests.sharding import step
from tests.training import several


@pytest.mark.parametrize("shape,words", [
    ({"fsdp": 3}, "does not cover 8 devices"), ({"pipe": 2}, "mesh axis 'pipe' is unknown"), ({"fsdp": -1, "tensor": 3}, "does not cover")])
def test_bad_meshes_are_refused(shape, words):
  with pytest.raises(ValueError, match=words):
    rules.make_mesh(shape)


def test_the_open_axis_takes_the_rest():
  assert dict(rules.make_mesh({"fsdp": -1, "tensor": 2}).shape) == {"data": 1, "fsdp": 4, "expert": 1, "context": 1, "tensor": 2}


def test_a_dimension_that_does_not_divide_is_named():
  boxed = {"w": nn.LogicallyPartitioned(jnp.zeros((6, 7)), ("embed", "mlp"))}
  with pytest.raises(ValueError, match=r"w \(6, 7\): 7 does not divide"):
    rules.param_shardings(rules.make_mesh({"fsdp": 2, "tensor": 4}), boxed)


def test_two_dimensions_may_not_claim_one_axis():
  with pytest.raises(ValueError, match="'embed' and 'vision_embed'.*both claim mesh axis 'fsdp'"):
    rules.spec(["embed", "vision_embed"])
  with pytest.raises(ValueError, match="'depth' has no rule"):
    rules.spec(["depth"])


def assert_same(found, expected):
  """Loss and every gradient, in relative Frobenius norm."""
  (metrics, gradients, _), (metrics_1, gradients_1, _) = found, expected
  assert metrics["loss_tokens"] == metrics_1["loss_tokens"] and metrics["loss"] == pytest.approx(metrics_1["loss"], rel=1e-5)
  assert metrics["loss_weights"] == metrics_1["loss_weights"] and metrics["loss_sums"] == pytest.approx(metrics_1["loss_sums"], rel=1e-5)
  largest = max(np.linalg.norm(g) for g in gradients_1.values())
  for path, gradient in gradients_1.items():
    difference = np.linalg.norm(gradients[path] - gradient)
    # Gradients that are zero but for rounding (a key bias) are measured against the largest.
    assert difference <= 1e-5 * max(np.linalg.norm(gradient), 1e-2 * largest), path


@functools.cache
def alone(groups):
  """The batch of so many row groups, and its step on one device."""
  batch = step.batch_for(rules.make_mesh({"data": groups}, jax.devices()[:groups]))
  return batch, step.run(rules.make_mesh({"data": 1}, jax.devices()[:1]), batch)


@pytest.mark.parametrize("shape,layout", [
    ({"data": 2, "fsdp": 2, "tensor": 2}, "none"), ({"data": 8}, "none"), ({"fsdp": 2, "expert": 2, "context": 2}, "striped"),
    ({"context": 8}, "zigzag"), ({"context": 4, "tensor": 2}, "striped")])
def test_eight_devices_step_as_one(shape, layout):
  mesh = rules.make_mesh(shape)
  batch, expected = alone(rules.ways(mesh, "batch"))
  found = step.run(mesh, batch, layout)
  assert_same(found, expected)
  assert len(found[2]) > 1 or not {"fsdp", "tensor"} & set(shape)  # really split


def test_a_model_begins_alike_on_every_mesh():
  model, found = serialize.build(step.model_config()), []
  for shape, devices in (({"data": 2, "fsdp": 2, "tensor": 2}, 8), ({"data": 1}, 1)):
    shardings = rules.param_shardings(rules.make_mesh(shape, jax.devices()[:devices]), load.abstract_params(model.config))
    make = jax.jit(lambda key: nn.meta.unbox(step.init(model, key)), out_shardings=shardings)
    found.append(optimizer.paths(make(jax.random.key(0))))
  for path, x in found[0].items():
    np.testing.assert_allclose(x, found[1][path], rtol=1e-5, atol=1e-7, err_msg=path)
  assert len(found[0]["decoder/layers/mlp/up"].sharding.device_set) == 8


def test_processes_step_as_one(tmp_path):
  """The same steps over four jax.distributed processes: rows between them, then the ring."""
  steps = ({"fsdp": 4, "context": 2}, "striped"), ({"context": 8}, "zigzag")
  command = [sys.executable, "-m", "tests.sharding.step", "4"]
  rest = [str(several.free_port()), json.dumps(steps), str(tmp_path)]
  running = [subprocess.Popen([*command, str(i), *rest], cwd=doors.ROOT, env=doors.ENVIRONMENT, stderr=subprocess.PIPE, text=True) for i in range(4)]
  several.finish(running)
  for number, (shape, _) in enumerate(steps):
    _, (metrics, gradients, kinds) = alone(rules.ways(rules.make_mesh(shape), "batch"))
    found = np.load(tmp_path / f"{number}.npz")
    assert_same(({**metrics, "loss": float(found["loss"])}, {p: found[p.replace("/", ".")] for p in gradients}, kinds), (metrics, gradients, kinds))
