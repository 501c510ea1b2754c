"""Meshes, and that eight devices train as one does."""

import json
import os
import socket
import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bluelm_jax.sharding import rules
from tests.sharding import step


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


@pytest.mark.parametrize("shape,layout", [
    ({"data": 2, "fsdp": 2, "tensor": 2}, "none"), ({"data": 8}, "none"), ({"fsdp": 2, "expert": 2, "context": 2}, "striped"),
    ({"context": 8}, "zigzag"), ({"context": 4, "tensor": 2}, "striped")])
def test_eight_devices_step_as_one(shape, layout):
  mesh = rules.make_mesh(shape)
  batch = step.batch_for(mesh)
  found = step.run(mesh, batch, layout)
  assert_same(found, step.run(rules.make_mesh({"data": 1}, jax.devices()[:1]), batch))
  assert len(found[2]) > 1 or not {"fsdp", "tensor"} & set(shape)  # really split


@pytest.mark.parametrize("processes,shape,layout", [(2, {"fsdp": 4, "context": 2}, "striped"), (4, {"context": 8}, "zigzag")])
def test_processes_step_as_one(processes, shape, layout, tmp_path):
  """The same step over jax.distributed processes, the ring crossing between them."""
  with socket.socket() as s:
    s.bind(("127.0.0.1", 0))
    port = s.getsockname()[1]
  output = tmp_path / "found.npz"
  command = [sys.executable, "-m", "tests.sharding.step", str(processes)]
  rest = [str(port), json.dumps(shape), layout, str(output)]
  running = [subprocess.Popen([*command, str(i), *rest], cwd=step.ROOT, env={**os.environ, "XLA_FLAGS": ""}, stderr=subprocess.PIPE, text=True) for i in range(processes)]
  for process in running:
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors[-2000:]
  mesh = rules.make_mesh(shape)
  metrics, gradients, kinds = step.run(rules.make_mesh({"data": 1}, jax.devices()[:1]), step.batch_for(mesh))
  found = np.load(output)
  assert_same(({**metrics, "loss": float(found["loss"])}, {p: found[p.replace("/", ".")] for p in gradients}, kinds), (metrics, gradients, kinds))
