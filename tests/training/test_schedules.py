"""Schedules against optax and a table, and decays that several stages share."""

import math

import numpy as np
import optax
import pytest

from bluelm_jax.training import defaults
from bluelm_jax.training import recipe
from bluelm_jax.training import schedules
from tests.bench import machine


def schedule(**changes):
  c = defaults.stage().schedule
  c.update({"warmup": 10, **changes})
  return c


def rates(config, steps, peak=2.0):
  made = schedules.make(config, peak, steps)
  return np.array([float(made(i)) for i in range(steps + 1)])


@pytest.mark.parametrize("kind,at,expected", [
    ("constant", 50, 1.0), ("linear", 10, 1.0), ("linear", 55, 0.55), ("linear", 100, 0.1), ("cosine", 55, 0.55), ("cosine", 100, 0.1),
    ("wsd", 69, 1.0), ("wsd", 85, 0.55), ("wsd", 100, 0.1), ("wsd", 5, 0.5), ("cosine", 0, 0.0), ("multistep", 5, 0.5),
    ("multistep", 79, 1.0), ("multistep", 80, math.sqrt(0.1)), ("multistep", 89, math.sqrt(0.1)), ("multistep", 90, 0.1), ("multistep", 100, 0.1)])
def test_a_table(kind, at, expected):
  assert rates(schedule(kind=kind), 100)[at] == pytest.approx(2 * expected, abs=1e-6)


@pytest.mark.parametrize("kind,final,oracle", [
    ("cosine", 0.1, optax.warmup_cosine_decay_schedule(0.0, 2.0, 10, 100, 0.2)),
    ("linear", 0.0, optax.join_schedules([optax.linear_schedule(0.0, 2.0, 10), optax.linear_schedule(2.0, 0.0, 90)], [10])),
    ("constant", 0.1, optax.warmup_constant_schedule(0.0, 2.0, 10)),
    ("multistep", 0.1, lambda i: optax.warmup_constant_schedule(0.0, 2.0, 10)(i) * optax.piecewise_constant_schedule(1.0, {79.5: 0.1**0.5, 89.5: 0.1**0.5})(i))])
def test_optax_has_the_same(kind, final, oracle):
  np.testing.assert_allclose(rates(schedule(kind=kind, final=final), 100), [float(oracle(i)) for i in range(101)], rtol=1e-6, atol=1e-7)


def test_a_line_ends_at_zero():
  assert rates(schedule(kind="linear", final=0.0), 100)[-1] == 0.0


def test_deepseek_7b():
  """4.2e-4 after 2000 steps; 31.6 % of it from 1.6 T of 2 T tokens on, 10 % from 1.8 T; batches of 2304 x 4096 (its README)."""
  per_step = 2304 * 4096
  made = schedules.make(schedule(kind="multistep", warmup=2000), 4.2e-4, round(2e12 / per_step))
  found = [float(made(round(t / per_step))) for t in (2000 * per_step, 1.599e12, 1.601e12, 1.799e12, 1.801e12, 2e12)]
  np.testing.assert_allclose(found, [4.2e-4, 4.2e-4, 0.316 * 4.2e-4, 0.316 * 4.2e-4, 4.2e-5, 4.2e-5], rtol=1e-3)


@pytest.mark.parametrize("kind", ["constant", "cosine", "linear", "wsd", "multistep"])
def test_stages_that_share_a_decay_go_down_one_curve(kind):
  whole = rates(schedule(kind=kind), 100)
  parts = [rates(schedule(kind=kind, horizon=100, offset=at), steps)[:-1] for at, steps in ((0, 4), (4, 66), (70, 30))]
  np.testing.assert_array_equal(np.concatenate(parts), whole[:-1])
  np.testing.assert_array_equal(rates(schedule(kind=kind, offset=70), 30), whole[70:])  # without a horizon it ends with the stage
  assert (rates(schedule(kind=kind, horizon=50), 100)[50:] == rates(schedule(kind=kind), 50)[-1]).all()


def config(*continues):
  c = defaults.load(f"{machine.ROOT}/configs/recipes/miniature.py")
  for name, steps in zip(c.order, (30, 20, 10, 50, 40)):
    c.stages[name].steps = steps
    c.stages[name].schedule.update(kind="cosine", warmup=5, final=0.1, decay_share=0.3, continues=name in continues)
  return c


def joined(c):
  return {name: (s.schedule.offset, s.schedule.horizon) for name, _, s in recipe.stages(c, "W")}


def test_a_recipe_counts_the_steps_before():
  assert joined(config("adapter", "joint")) == {"text": (0, 0), "vision": (0, 80), "adapter": (20, 80), "joint": (30, 80), "sft": (0, 0)}
  c = config("sft")
  c.stages.joint.schedule.offset = 7
  assert joined(c)["joint"] == (7, 97) and joined(c)["sft"] == (57, 97)
  for name in ("joint", "sft"):
    c.stages[name].schedule.horizon = 500
  assert joined(c)["joint"] == (7, 500) and joined(c)["sft"] == (57, 500)


@pytest.mark.parametrize("stage,changes,words", [
    ("text", {"continues": True}, "stages.text.schedule.continues is set, but text is the first stage"),
    ("sft", {"offset": 3}, "stages.sft.schedule.offset is set, but it continues"),
    ("sft", {"warmup": 6}, "stages.sft.schedule continues that of joint, but its warmup is 6 and there 5; set them alike"),
    ("joint", {"horizon": 300}, "but its horizon is 0 and there 300"), ("sft", {"kind": "linear"}, "but its kind is linear and there cosine")])
def test_what_cannot_be_joined(stage, changes, words):
  c = config("sft")
  c.stages[stage].schedule.update(changes)
  with pytest.raises(ValueError, match=words):
    recipe.stages(c, "W")
