"""Steps that would harm: left out, gone back from, and the end of a run that has nothing else."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bluelm_jax.data import pack
from bluelm_jax.interop import load
from bluelm_jax.interop import manifest
from bluelm_jax.training import metrics
from bluelm_jax.training import record
from bluelm_jax.training import spikes
from bluelm_jax.training import stage
from tests.training import faulty
from tests.training import spoiling
from tests.training.presets import preset  # noqa: F401  (for every test here)
from tests.training.programs import programs  # noqa: F401  (for every test here)

RULE = spikes.Rule(factor=3.0, window=4, warmup=2, patience=3, rollbacks=2)


def config(**changes):
  c = faulty.config()
  c.data.rows, c.steps, c.checkpoint_every, c.log_every, c.schedule.kind = 8, 10, 4, 1, "constant"
  c.spikes.patience, c.spikes.rollbacks = 3, 2
  c.update_from_flattened_dict(changes)
  return c


@pytest.fixture
def spoil(monkeypatch):
  """spoil(numbers): from now on batches of these numbers, counted from 1 as the data give them, make the loss no number."""
  chosen = set()
  monkeypatch.setattr(pack, "PackIterator", spoiling.iterator(chosen))
  return lambda numbers: (chosen.clear(), chosen.update(numbers))


@pytest.fixture
def leave_out(monkeypatch):
  """leave_out(numbers): these batches never reach the loop."""
  original, chosen = stage.try_batch, set()

  def omit(batches, spec):
    original(batches, spec)
    draw = type(batches).__next__

    class Omitting(type(batches)):

      def __next__(self):
        batch = draw(self)
        while self.number in chosen:
          batch = draw(self)
        return batch

    batches.__class__ = Omitting

  monkeypatch.setattr(stage, "try_batch", omit)
  return lambda numbers: (chosen.clear(), chosen.update(numbers))


def losses(workdir):
  return [r["loss"] for r in metrics.read(workdir) if "loss" in r]


def lines(workdir):
  return [json.loads(line) for line in (workdir / spikes.FILE_NAME).read_text().splitlines()]


def same_params(a, b):
  return jax.tree.all(jax.tree.map(np.array_equal, *(load.load_pretrained(w)[1] for w in (a, b))))


def without_guard(workdir, step):
  """As a checkpoint of an earlier version was."""
  directory = workdir / "checkpoints" / str(step)
  shutil.rmtree(directory / "spikes")
  (directory / manifest.FILE_NAME).unlink()


def test_a_bad_batch_is_as_if_it_had_not_been(spoil, leave_out, tmp_path):
  """Bit for bit, also where the run is stopped at it, and before it by a version that had no guard; its examples are named."""
  spoil({4})
  stage.run(config(), tmp_path / "whole")
  stage.run(config(), tmp_path / "broken", stop_after=3)
  without_guard(tmp_path / "broken", 3)
  stage.run(config(), tmp_path / "broken", stop_after=4)
  assert record.latest_step(tmp_path / "broken") == 4
  stage.run(config(), tmp_path / "broken")
  leave_out({4})
  stage.run(config(), tmp_path / "without", stop_after=9)
  assert [r["skipped"] for r in metrics.read(tmp_path / "whole")] == [0, 0, 0, 1, 0, 0, 0, 0, 0, 0]
  assert losses(tmp_path / "whole") == losses(tmp_path / "broken") == losses(tmp_path / "without") and len(losses(tmp_path / "whole")) == 9
  assert same_params(tmp_path / "whole", tmp_path / "broken") and same_params(tmp_path / "whole", tmp_path / "without")
  (line,) = lines(tmp_path / "whole")
  assert line["step"] == 4 and line["grad_norm"] in ("nan", "inf") and 0 < line["grad_norm_mean"] < 100
  (batch,) = line["row, example, piece by source"]
  assert set(batch) == set(config().data.sources)
  assert {row for segments in batch.values() for row, _, _ in segments} == set(range(8))
  assert len({example for segments in batch.values() for _, example, _ in segments}) > 8


def test_several_in_a_row_send_the_run_back(spoil, leave_out, tmp_path, capsys):
  """Behind the batches, whenever the loop looks and wherever it was stopped."""
  spoil({5, 6, 7})
  stage.run(config(), tmp_path / "whole")
  warnings = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: the steps up to")]
  assert len(warnings) == 1 and "the steps up to 7 were bad; going on from step 4 with the data behind them" in warnings[0]
  assert [line["step"] for line in lines(tmp_path / "whole")] == [5, 6, 7, 7] and lines(tmp_path / "whole")[-1]["went_back_to"] == 4
  stage.run(config(log_every=10), tmp_path / "broken", stop_after=6)
  stage.run(config(log_every=10), tmp_path / "broken")
  assert lines(tmp_path / "broken")[-1] == {"step": 8, "went_back_to": 4}  # seen where it would have saved
  assert sorted(int(p.name) for p in (tmp_path / "broken/checkpoints").iterdir()) == [8, 10]
  leave_out({5, 6, 7})
  stage.run(config(), tmp_path / "without")
  assert losses(tmp_path / "whole") == losses(tmp_path / "without") and len(losses(tmp_path / "whole")) == 10
  assert all(same_params(tmp_path / "whole", tmp_path / name) for name in ("broken", "without"))


def test_nothing_but_bad_batches_end_a_run(spoil, tmp_path):
  spoil(set(range(3, 100)))
  with pytest.raises(ValueError, match=r"3 steps in a row up to 5 were bad, after 2 roll-backs without progress; lower optimizer.learning_rate") as error:
    stage.run(config(steps=12, checkpoint_every=1), tmp_path / "w")
  assert "\n" not in str(error.value) and record.latest_step(tmp_path / "w") == 2
  assert [line["went_back_to"] for line in lines(tmp_path / "w") if "went_back_to" in line] == [2, 2]
  shutil.rmtree(tmp_path / "w")
  spoil({1, 2, 3})  # before any checkpoint: what there is goes on
  stage.run(config(), tmp_path / "w", stop_after=5)
  assert lines(tmp_path / "w")[-1] == {"step": 3, "went_back_to": 3} and len(losses(tmp_path / "w")) == 2


def test_a_bad_batch_spoils_its_whole_step(spoil, leave_out, tmp_path):
  c = config(**{"data.accumulate": ((0, 2),), "steps": 3})
  spoil({3})
  stage.run(c, tmp_path / "spoilt")
  leave_out({3, 4})
  stage.run(c, tmp_path / "without", stop_after=2)
  assert same_params(tmp_path / "spoilt", tmp_path / "without") and losses(tmp_path / "spoilt") == losses(tmp_path / "without")
  (line,) = lines(tmp_path / "spoilt")
  assert line["step"] == 2 and len(line["row, example, piece by source"]) == 2


def judged(norms, rule=RULE, losses_found=None):
  """Which steps are bad, and what is remembered of the last."""
  guard, found = spikes.start(), []
  for step, norm in enumerate(norms, 1):
    bad, guard = spikes.judge(rule, guard, jnp.int32(step), jnp.float32((losses_found or {}).get(step, 1.0)), jnp.float32(norm))
    found.append(bool(bad))
  return found, guard


def test_norms_are_judged_by_their_running_mean():
  found, guard = judged([100, 1, 160, 140, 2, 2, 2, 2, 200, 2])
  assert found == [False, False, True, False, False, False, False, False, True, False]
  mean = 0.0
  for count, norm in enumerate([100, 1, 140, 2, 2, 2, 2, 2]):
    mean += (norm - mean) / min(count + 1, 4)
  assert float(guard.mean) == pytest.approx(mean) and guard.good == 8 and guard.row == 0
  assert judged([1, 1, 1, 1e9], RULE._replace(factor=0))[0] == [False] * 4
  assert judged([1, np.nan, np.inf, 1], RULE._replace(factor=0))[0] == [False, True, True, False]
  assert judged([1, 1, 1], losses_found={2: np.inf})[0] == [False, True, False]


def test_after_too_many_nothing_is_learnt_until_the_run_goes_back():
  found, guard = judged([1, 1, np.nan, np.nan, np.nan, 1, 1])
  assert found == [False, False, True, True, True, True, True] and guard.row == 5 and guard.good == 2


def test_progress_is_to_get_further_than_before():
  guard = spikes.start()._replace(rollbacks=jnp.int32(2), reached=jnp.int32(7))
  for step, expected in ((6, 2), (7, 2), (8, 0)):
    _, guard = spikes.judge(RULE, guard, jnp.int32(step), jnp.float32(1), jnp.float32(1))
    assert guard.rollbacks == expected
