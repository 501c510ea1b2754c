"""The scaling laws at the paper's two models, our count of FLOPs against its formula, and the door."""

import pytest

from bluelm_jax.models.config import DecoderConfig
from bluelm_jax.training import defaults
from bluelm_jax.training import scaling
from tests import doors


@pytest.mark.parametrize("layers,width,rate,used,rows,rows_used", [
    (30, 4096, 4.246e-4, 4.2e-4, 2252, 2304), (95, 8192, 3.120e-4, 3.2e-4, 5043, 4608)])
def test_the_published_models(layers, width, rate, used, rows, rows_used):
  """7B and 67B, 2 T tokens in rows of 4096: the laws give what was used within 3 % and 10 %."""
  compute = (72 * layers * width**2 + 12 * layers * width * 4096) * 2e12
  assert scaling.learning_rate(compute) == pytest.approx(rate, rel=1e-3) and rate == pytest.approx(used, rel=0.03)
  assert scaling.batch_tokens(compute) / 4096 == pytest.approx(rows, rel=1e-3) and rows == pytest.approx(rows_used, rel=0.1)


def test_the_best_model_spends_the_budget():
  for compute in (1e18, 1e20, 1e24):
    assert scaling.model_flops(compute) * scaling.tokens(compute) == pytest.approx(compute, rel=2e-3)


def test_flops_a_token_are_the_papers():
  """72 l d^2 + 12 l d s is of an MLP of 8/3 d; the 7B model's is a little wider."""
  model = DecoderConfig(vocab_size=102400, num_layers=30, embed_dim=4096, num_heads=32, num_kv_heads=32, head_dim=128, mlp_dim=11008)
  assert scaling.flops_per_token(model, 4096) == pytest.approx(72 * 30 * 4096**2 + 12 * 30 * 4096**2, rel=0.01)
  exact = DecoderConfig(vocab_size=10, num_layers=3, embed_dim=96, num_heads=4, num_kv_heads=4, head_dim=24, mlp_dim=256)
  assert scaling.flops_per_token(exact, 50) == 72 * 3 * 96**2 + 12 * 3 * 96 * 50


def test_tokens_of_a_stage():
  c = defaults.stage()
  c.steps, c.data.rows, c.data.length = 100, 4, 32
  assert scaling.stage_tokens(c) == 100 * 4 * 32
  c.data.accumulate = ((0, 1), (10, 2), (50, 4), (1000, 9))
  assert scaling.stage_tokens(c) == (10 + 40 * 2 + 50 * 4) * 4 * 32
  c.schedule.horizon = 2000
  assert scaling.stage_tokens(c) == (10 + 40 * 2 + 950 * 4 + 1000 * 9) * 4 * 32


def door(*flags):
  return doors.run("bluelm_jax.scaling", *flags)


def test_the_door():
  out = door("--flops=8.4557e22")
  assert out.returncode == 0 and "learning rate        4.246e-04" in out.stdout and "9,22" in out.stdout, out.stderr
  out = door("--config=configs/stages/text.py:small", "--config.data.accumulate=((0,1),(50,4))")
  assert out.returncode == 0 and "its rows             256 of 1024" in out.stdout, out.stderr


@pytest.mark.parametrize("flags", [(), ("--flops=1e20", "--config=configs/stages/text.py:small")])
def test_the_door_wants_one_budget(flags):
  out = door(*flags)
  assert out.returncode == 2 and out.stderr == "error: give one of --flops and --config\n"
