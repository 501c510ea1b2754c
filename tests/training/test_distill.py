"""Stages that follow a teacher: what they log, save and refuse."""

import dataclasses
import json
import re
import shutil

import jax
import numpy as np
import pytest

import bluelm_jax
from bluelm_jax.data.tokenizer import ASSET
from bluelm_jax.interop import load
from bluelm_jax.models import presets
from bluelm_jax.models import serialize
from bluelm_jax.models.config import DecoderConfig
from bluelm_jax.sharding import chips
from bluelm_jax.sharding import rules
from bluelm_jax.training import defaults
from bluelm_jax.training import metrics
from bluelm_jax.training import recipe
from bluelm_jax.training import stage
from bluelm_jax.training import teacher as teacher_lib
from bluelm_jax.training.precompile import compile as compile_lib
from tests import hurry
from tests.bench import machine
from tests.training.programs import programs  # noqa: F401  (for every test here)

TEACHER = DecoderConfig(vocab_size=1152, num_layers=2, embed_dim=24, num_heads=2, num_kv_heads=1, head_dim=8, mlp_dim=32, context=64)
STUDENT = dataclasses.replace(TEACHER, num_layers=1, embed_dim=16, mlp_dim=24, tie_embeddings=True)


def text(preset="student", **changes):
  """A text stage of four steps."""
  config = defaults.load(f"{machine.ROOT}/configs/stages/text.py:miniature")
  config.preset, config.optimizer.name = preset, "adamw"
  config.steps, config.log_every, config.checkpoint_every, config.keep, config.schedule.warmup = 4, 1, 2, 2, 0
  config.data.rows, config.data.length, config.optimizer.learning_rate = 8, 32, 0.01
  config.update_from_flattened_dict(changes)
  return config


def distil(teacher, **changes):
  return text(**{"objective": "distill", "distill.teacher": str(teacher), "distill.temperature": 2.0, **changes})


@pytest.fixture(scope="module", autouse=True)
def sizes():
  with pytest.MonkeyPatch.context() as patch:
    patch.setitem(presets.PRESETS, "teacher", lambda: TEACHER)
    patch.setitem(presets.PRESETS, "student", lambda: STUDENT)
    yield


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("teacher") / "w"
  stage.run(text("teacher"), workdir)
  return workdir


@pytest.fixture(scope="module")
def distilled(teacher, tmp_path_factory):
  workdir = tmp_path_factory.mktemp("distilled") / "w"
  stage.run(distil(teacher), workdir)
  return workdir


def losses(workdir):
  return [{k: v for k, v in line.items() if k == "step" or k.startswith("loss")} for line in metrics.read(workdir)]


def assert_same_params(a, b):
  a, b = (bluelm_jax.load_pretrained(w)[1] for w in (a, b))
  assert jax.tree.all(jax.tree.map(np.array_equal, a, b))


def test_the_parts_make_the_loss(distilled):
  lines = losses(distilled)
  assert len(lines) == 4 and lines[-1]["loss"] < lines[0]["loss"]
  for line in lines:
    parts = 0.5 * line["loss_parts/cross_entropy"] + 0.5 * 4 * line["loss_parts/divergence"]
    assert line["loss"] == pytest.approx(parts, rel=1e-5) and line["loss_parts/divergence"] > 1e-3


def test_stopped_and_resumed_is_bit_identical(teacher, distilled, tmp_path):
  stage.run(distil(teacher), tmp_path, stop_after=3)
  stage.run(distil(teacher), tmp_path)
  assert losses(tmp_path) == losses(distilled)
  assert_same_params(tmp_path, distilled)


def test_the_checkpoint_holds_the_student_alone(distilled):
  stored = list((distilled / "checkpoints" / "4").rglob("*"))
  assert stored and not any("teacher" in p.name for p in stored)
  assert {p: t.shape for p, t in load.open_checkpoint(distilled)[1].items()} == load.param_shapes(STUDENT)


def test_without_a_share_a_teacher_changes_nothing(teacher, tmp_path, monkeypatch):
  """Bit for bit, in two programs."""
  monkeypatch.setattr(chips, "compiler_options", lambda kind: hurry.ALIKE)
  stage.run(text(), tmp_path / "lm")
  stage.run(distil(teacher, **{"distill.share": 0.0}), tmp_path / "distill")
  plain, taught = losses(tmp_path / "lm"), losses(tmp_path / "distill")
  for a, b in zip(plain, taught, strict=True):
    assert a.items() <= b.items() and b["loss_parts/cross_entropy"] == b["loss"]
  assert_same_params(tmp_path / "lm", tmp_path / "distill")


def test_a_student_that_is_its_teacher_has_nothing_to_learn_from_it(teacher, tmp_path):
  stage.run(distil(teacher, preset="teacher", init_from=str(teacher), steps=1, **{"distill.share": 1.0}), tmp_path)
  (line,) = losses(tmp_path)
  assert abs(line["loss"]) < 1e-6 and abs(line["loss_parts/divergence"]) < 1e-6 and line["loss_parts/cross_entropy"] > 1


def test_chunks_change_how_a_stage_is_computed_alone(teacher, distilled, tmp_path):
  shutil.copytree(distilled, tmp_path / "w")
  shutil.rmtree(tmp_path / "w" / "checkpoints" / "4")
  stage.run(distil(teacher, loss_chunks=9), tmp_path / "w")  # goes on; no key that is learnt from has changed
  for a, b in zip(losses(tmp_path / "w"), losses(distilled), strict=True):
    assert a == pytest.approx(b, rel=1e-4)


@pytest.mark.parametrize("changes,words", [
    ({"distill.teacher": ""}, "objective 'distill' and distill.teacher '' do not go together; set a teacher"),
    ({"objective": "lm"}, "objective 'lm' and distill.teacher"),
    ({"distill.teacher": "/nowhere"}, "no checkpoint directory at /nowhere"),
    ({"distill.temperature": 0.0}, "distill.temperature 0.0 must be positive"),
    ({"distill.share": 1.5}, "distill.share 1.5 must be from 0 to 1"),
    ({"loss_chunks": 5}, "loss_chunks 5 do not divide a vocabulary of 1152 on 1 tensor ranks; use a divisor of 1152"),
    ({"loss_chunks": 0}, "loss_chunks 0 must be at least 1"),
    ({"loss_chunks": 1152, "mesh.tensor": 2, "mesh.fsdp": 4}, "loss_chunks 1152 do not divide a vocabulary of 1152 on 2 tensor ranks; use a divisor of 576"),
    ({"data.length": 128, "preset": "miniature"}, "data.length 128 exceeds the context of distill.teacher"),
    ({"data.tile_slots": 8, "preset": "miniature"}, "does not see images in the student's tiles; set data.tile_slots = 0")])
def test_a_distilling_stage_refuses(changes, words, teacher, tmp_path):
  with pytest.raises(ValueError, match=re.escape(words)) as error:
    stage.run(distil(teacher, **changes), tmp_path / "w")
  assert "\n" not in str(error.value) and not (tmp_path / "w").exists()


def described(path, config):
  path.mkdir()
  serialize.save(config, path)
  shutil.copy(ASSET, path / "tokenizer.json")
  return path


def test_a_teacher_of_another_vocabulary_is_refused(tmp_path):
  larger = described(tmp_path / "larger", dataclasses.replace(TEACHER, vocab_size=1200))
  with pytest.raises(ValueError, match="larger has a vocabulary of 1200, the student one of 1152; use a teacher with the student's"):
    stage.run(distil(larger), tmp_path / "w")
  other = described(tmp_path / "other", TEACHER)
  tokens = json.loads((other / "tokenizer.json").read_text())
  vocabulary = tokens["model"]["vocab"]
  (a, first), (b, second) = [pair for pair in vocabulary.items()][-2:]
  vocabulary[a], vocabulary[b] = second, first
  (other / "tokenizer.json").write_text(json.dumps(tokens))
  with pytest.raises(ValueError, match="give tokens different ids; use a teacher with the student's tokenizer"):
    stage.run(distil(other), tmp_path / "w")
  vision = described(tmp_path / "vision", presets.siglip2_so400m())
  with pytest.raises(ValueError, match="vision is a vision tower and predicts no tokens"):
    stage.run(distil(vision), tmp_path / "w")
  assert not (tmp_path / "w").exists()


def test_a_run_goes_on_with_its_own_teacher(teacher, distilled, tmp_path):
  shutil.copytree(teacher, tmp_path / "moved")
  stage.run(distil(tmp_path / "moved"), distilled)  # at its end already; the same run elsewhere
  shutil.copytree(teacher, tmp_path / "other")
  record = json.loads((tmp_path / "other" / "stage.json").read_text())
  (tmp_path / "other" / "stage.json").write_text(json.dumps({**record, "run": "another"}))
  with pytest.raises(ValueError, match="was taught by .*, and distill.teacher = .*other\" is not that run; set it back"):
    stage.run(distil(tmp_path / "other"), distilled)


def test_in_a_recipe_an_earlier_stage_may_teach():
  whole = type(text())({"order": ("teacher", "student"), "stages": {"teacher": text("teacher"), "student": distil("teacher")}, "evaluation": {}})
  found = recipe.stages(whole, "W")
  assert found[1][2].distill.teacher == "W/1-teacher" and whole.stages.student.distill.teacher == "teacher"


def test_a_step_is_described_without_the_weights(tmp_path):
  """The teacher is held in the precision in which it computes, in pieces over fsdp and tensor ranks."""
  there = described(tmp_path / "t", dataclasses.replace(TEACHER, dtype="bfloat16", num_kv_heads=2))
  config = distil(there, **{"mesh.fsdp": 4, "mesh.tensor": 2, "execution.attention": "xla"})
  config.preset = "miniature"
  mesh = rules.make_mesh(config.mesh.to_dict())
  model_config = teacher_lib.described(config, presets.miniature())
  assert model_config.param_dtype == "bfloat16" and model_config.attention == "xla"
  d = compile_lib.describe(config, jax.devices())
  assert {x.dtype.name for x in jax.tree.leaves(d.teacher)} == {"bfloat16"}
  head = d.teacher["lm_head"]
  assert head.shape == (24, 1152) and head.sharding.shard_shape(head.shape) == (6, 576) and head.sharding.mesh == mesh
