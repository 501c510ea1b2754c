"""Two processes that train one stage together: one is killed, and both go on."""

from bluelm_jax.training import metrics
from bluelm_jax.training import record
from tests.bench import kills

STEPS = 12


def losses(directory):
  return [(r["step"], r["loss"]) for r in metrics.read(directory)]


def test_a_killed_process_costs_steps_and_no_more(tmp_path):
  whole, killed = tmp_path / "whole", tmp_path / "killed"
  kills.kill(kills.launch(STEPS, killed), killed, victim=1, new_lines=5, wait=0.0)
  assert 5 <= kills.lines(killed) < STEPS
  kills.finish(kills.launch(STEPS, killed, whole))
  assert losses(killed) == losses(whole) and [s for s, _ in losses(whole)] == list(range(1, STEPS + 1))
  assert record.latest_step(killed) == STEPS
