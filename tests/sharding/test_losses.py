"""Losses in chunks on a mesh: equal to the plain ones on one device, and no more travels than for those."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bluelm_jax.kernels import chunked_losses
from bluelm_jax.models import serialize
from bluelm_jax.sharding import rules
from bluelm_jax.training import losses
from bluelm_jax.training.precompile import compile as compile_lib
from bluelm_jax.training.precompile import hlo
from bluelm_jax.training.precompile import topology
from tests.sharding import step
from tests.sharding.test_rules import assert_same

ONE = {"data": 1}




@pytest.mark.parametrize("taught", [False, True])
@pytest.mark.parametrize("shape,layout", [({"data": 2, "fsdp": 2, "tensor": 2}, "none"), ({"fsdp": 2, "context": 2, "tensor": 2}, "striped")])
def test_eight_devices_step_as_one(shape, layout, taught):
  mesh = rules.make_mesh(shape)
  batch = step.batch_for(mesh)
  found = step.run(mesh, batch, layout, chunks=9, taught=taught)
  expected = step.run(rules.make_mesh(ONE, jax.devices()[:1]), batch, taught=taught)
  assert_same(found, expected)
  if taught:
    for name in ("loss_parts/cross_entropy", "loss_parts/divergence"):
      assert found[0][name] == pytest.approx(expected[0][name], rel=1e-5) and found[0][name] > 0
