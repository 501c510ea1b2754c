"""The memory budget against arithmetic and against itself; tests/aot/test_fsdp.py holds it against compilers."""

import math

import jax
import pytest

from bluelm_jax.sharding import rules
from bluelm_jax.training import defaults
from bluelm_jax.training import memory
from bluelm_jax.training.precompile import compile as compile_lib
from tests.bench import machine


def stage_config(zero=3, remat="full", rows=32, tile_slots=128):
  config = defaults.load(f"{machine.ROOT}/configs/stages/joint.py:small")
  config.optimizer.name, config.zero, config.execution.remat = "adamw", zero, remat
  config.data.rows, config.data.tile_slots = rows, tile_slots
  return config


def test_sixteen_bytes_a_parameter():
  assert memory.state_bytes(7 * 10**9, 1, 3) == memory.state_bytes(7 * 10**9, 64, 0) == 112 * 10**9
  assert [memory.state_bytes(64, 64, zero) for zero in (1, 2, 3)] == [8 * 64 + 8, 4 * 64 + 12, 16]
  with pytest.raises(ValueError, match="stages 0 to 3"):
    memory.state_bytes(1, 1, 4)


@pytest.mark.parametrize("zero", [2, 3])
def test_the_state_is_divided_as_the_trainer_divides_it(zero):
  config = stage_config(zero=zero)
  config.mesh.update({"data": 2, "fsdp": 4})
  described = compile_lib.describe(config, jax.devices())
  found, state = memory.budget(config, described.mesh), described.state
  weights = 4 * sum(math.prod(x.shape) for x in state.trainable.values())
  pieces = 4 * sum(math.prod(x.sharding.shard_shape(x.shape)) for x in jax.tree.leaves(state.opt_state) if x.ndim) // 2
  assert found.gradients == pytest.approx(pieces, rel=1e-3) and pieces < 0.3 * weights  # norms are whole everywhere
  assert found.params == (weights if zero == 2 else pytest.approx(pieces, rel=1e-3))


def test_policies_keep_less_in_order():
  mesh = rules.make_mesh({"data": 8})
  saved = [memory.budget(stage_config(remat=name), mesh).saved for name in ("none", "dots_no_batch", "full")]
  assert saved == sorted(saved, reverse=True) and saved[0] > 5 * saved[-1]


def test_half_the_rows_keep_half():
  mesh = rules.make_mesh({"data": 8})
  one, two = (memory.budget(stage_config(rows=rows, tile_slots=0), mesh).saved for rows in (16, 32))
  assert two == pytest.approx(2 * one, rel=0.01)


@pytest.mark.parametrize("name", ["adamw", "moonlight"])
def test_narrow_moments_take_half(name):
  config, mesh = stage_config(), rules.make_mesh({"data": 8})
  config.optimizer.name = name
  wide = memory.budget(config, mesh)
  config.optimizer.moment_dtype = "bfloat16"
  narrow = memory.budget(config, mesh)
  assert narrow.optimizer == pytest.approx(wide.optimizer / 2, rel=1e-3) and narrow.gradients == wide.gradients


def test_weights_in_pieces_are_cast_and_gradients_come_after_the_loss():
  config, mesh = stage_config(), rules.make_mesh({"fsdp": 8})
  found = memory.budget(config, mesh)
  assert found.cast == pytest.approx(found.params / 2, rel=1e-3)  # bfloat16
  at_loss = found.params + found.optimizer + found.cast + found.saved + found.loss
  assert found.total == max(at_loss, at_loss - found.loss + found.gradients + found.layer)
  text = memory.budget(stage_config(tile_slots=0), mesh)
  assert text.cast < found.cast and text.params == found.params  # the tower's lie still
  config.zero = 2
  assert memory.budget(config, mesh).cast == 0
