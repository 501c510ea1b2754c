"""Held-out losses and traces of a stage that stops and goes on: each evaluation is there once, and is what it must be."""

import functools
import os
import shutil
import signal

import jax
import numpy as np
import pytest

import bluelm_jax
from bluelm_jax import supervise
from bluelm_jax.data import loader
from bluelm_jax.data import pack
from bluelm_jax.data.chat import ChatFormat
from bluelm_jax.data.tokenizer import Tokenizer
from bluelm_jax.training import defaults
from bluelm_jax.training import goodput
from bluelm_jax.training import losses
from bluelm_jax.training import metrics
from bluelm_jax.training import online
from bluelm_jax.training import profiling
from bluelm_jax.training import record
from bluelm_jax.training import stage
from tests.training import faulty
from tests.training.presets import preset  # noqa: F401  (for every test here)
from tests.training.programs import programs  # noqa: F401  (for every test here)


def config(**changes):
  """Five steps, of which 2 and 4 are evaluated, and 5 because it is the last."""
  c = faulty.config()
  c.data.rows, c.steps, c.checkpoint_every, c.evaluate.every, c.evaluate.batches = 8, 5, 2, 2, 3
  defaults.fill(
      c.evaluate.sources, prose=dict(kind="documents", path="assets/text-test.array_record", share=0.8, window=40),
      reasoning=dict(kind="reasoning", share=0.2, styles=dict(short=1.0)))
  c.update_from_flattened_dict(changes)
  return c


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("whole") / "w"
  workdir.mkdir()
  (workdir / profiling.REQUEST).write_text("2")
  stage.run(config(), workdir)
  return workdir


@pytest.fixture
def workdir(whole, tmp_path):
  return shutil.copytree(whole, tmp_path / "w")


def lines(workdir):
  return (workdir / online.FILE_NAME).read_text().splitlines(keepends=True)


def losses_of(workdir):
  return [(r["step"], r["loss"], r["grad_norm"]) for r in metrics.read(workdir)]


def test_the_loss_is_one_sum_over_one_count(whole):
  """Of the same batches, packed and weighed here; the model is that of the last checkpoint."""
  c, (model, params) = config(), bluelm_jax.load_pretrained(whole)
  batches = loader.batches(c.evaluate.sources, ChatFormat(Tokenizer(), None, 1), pack.PackSpec(8, 64, 8), online.SEED)
  held = jax.tree.map(lambda *parts: np.concatenate(parts), *(next(batches) for _ in range(3)))
  found = np.asarray(jax.jit(functools.partial(losses.token_losses, model))(params, held))
  last = online.read(whole)[5]
  assert last["loss"] == pytest.approx(found.sum() / held.loss_weights.sum(), rel=1e-5)
  assert last["loss_tokens"] == held.loss_weights.sum() and last["batches"] == 3
  for i, name in enumerate(("prose", "reasoning")):
    here = held.sources == i
    assert last[f"loss/{name}"] == pytest.approx(found[here].sum() / held.loss_weights[here].sum(), rel=1e-5)


def test_evaluations_are_kept_and_logged(whole):
  found, logged = online.read(whole), metrics.read(whole)
  assert list(found) == [2, 4, 5] and len(lines(whole)) == 3 and found[5]["loss"] < found[2]["loss"]
  assert [r["step"] for r in logged] == [1, 2, 3, 4, 5] and [r["step"] for r in logged if "eval/loss" in r] == [2, 4, 5]
  assert all(r["eval/loss/prose"] == pytest.approx(found[r["step"]]["loss/prose"], rel=1e-5) for r in logged if "eval/loss" in r)
  assert ["tflop_per_second_per_device" in r for r in logged] == [False, True, True, True, True]
  assert goodput.read(whole)["evaluation"] > 0


def test_sigterm_meanwhile_saves_the_step_and_leaves_the_evaluation_to_the_next(whole, tmp_path, monkeypatch):
  """What is learnt does not depend on evaluations: the first step knew of none."""
  stage.run(config(**{"evaluate.every": 0}), tmp_path, stop_after=1)
  make = online.Evaluation.make

  def interrupted(self, step, state, asked, beat):
    os.kill(os.getpid(), signal.SIGTERM)
    return make(self, step, state, asked, beat)

  monkeypatch.setattr(online.Evaluation, "make", interrupted)
  with pytest.raises(supervise.Preempted, match="saved step 2 of 5"):
    stage.run(config(checkpoint_every=100), tmp_path)
  monkeypatch.undo()
  assert record.latest_step(tmp_path) == 2 and not (tmp_path / online.FILE_NAME).exists()
  (tmp_path / online.FILE_NAME).write_text('{"step": 2, "lo')  # as if it had come while this was written
  stage.run(config(), tmp_path)
  assert lines(tmp_path) == lines(whole) and losses_of(tmp_path) == losses_of(whole)


def test_none_is_made_twice_and_none_is_left_out(workdir, whole, monkeypatch):
  shutil.rmtree(workdir / "checkpoints/5")
  kept, made = lines(workdir), []
  monkeypatch.setattr(online.Evaluation, "make", lambda self, step, *_: made.append(step))
  stage.run(config(), workdir)  # its last step again
  assert not made and lines(workdir) == kept and losses_of(workdir) == losses_of(whole)
  monkeypatch.undo()
  (workdir / online.FILE_NAME).write_text("".join(kept[:2]))
  stage.run(config(), workdir)  # no step is left, but an evaluation
  assert lines(workdir) == kept
  (workdir / online.FILE_NAME).write_text("".join([kept[0], "{\n", *kept[1:]]))
  with pytest.raises(ValueError, match="evaluation.jsonl is damaged .*; remove the line"):
    stage.run(config(), workdir)


def test_a_trace_was_asked_for(whole):
  assert [p.relative_to(whole / profiling.DIRECTORY).parts[0] for p in whole.rglob("*.xplane.pb")] == ["1"]
