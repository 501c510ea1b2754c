"""A teacher's words on disk: written, gone on with, followed by a student, refused."""

import dataclasses
import re
import shutil

import jax
from ml_collections import ConfigDict
import numpy as np
import pytest

from bluelm_jax.data.tokenizer import ASSET
from bluelm_jax.interop import load
from bluelm_jax.interop import mapping
from bluelm_jax.models import presets
from bluelm_jax.models.config import DecoderConfig
from bluelm_jax.training import accumulate
from bluelm_jax.training import defaults
from bluelm_jax.training import metrics
from bluelm_jax.training import recipe
from bluelm_jax.training import stage
from bluelm_jax.training import store
from tests.bench import machine
from tests.training.programs import programs  # noqa: F401  (for every test here)
from tests.training.test_distill import assert_same_params
from tests.training.test_distill import losses

TEACHER = DecoderConfig(vocab_size=1152, num_layers=1, embed_dim=24, num_heads=2, num_kv_heads=2, head_dim=8, mlp_dim=32, context=64)
STUDENT = dataclasses.replace(TEACHER, embed_dim=16, mlp_dim=24, tie_embeddings=True)
BATCHES = 6


@pytest.fixture(scope="module", autouse=True)
def preset():
  with pytest.MonkeyPatch.context() as patch:
    patch.setitem(presets.PRESETS, "student", lambda: STUDENT)
    yield


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
  """With random weights that make some tokens far likelier than others."""
  directory = tmp_path_factory.mktemp("teacher") / "t"
  rng = np.random.default_rng(0)
  tensors = {p: mapping.in_memory((rng.standard_normal(s) * 0.4 + ("scale" in p)).astype(np.float32)) for p, s in load.param_shapes(TEACHER).items()}
  load.save(directory, TEACHER, tensors, {"tokenizer.json": ASSET.read_bytes()})
  return directory


def config(name, **changes):
  c = defaults.load(f"{machine.ROOT}/configs/stages/{name}.py:miniature")
  c.preset, c.steps, c.log_every, c.checkpoint_every, c.data.rows, c.data.length = "student", 4, 1, 2, 8, 32
  c.data.sources.prose.window, c.distill.temperature = 32, 2.0
  c.update_from_flattened_dict(changes)
  return c


def teach(teacher, **changes):
  return config("teach", **{"distill.teacher": str(teacher), "distill.top_k": 8, "steps": BATCHES, **changes})


def distil(**changes):
  """Three steps of six batches."""
  learn = {"trainable": (".*",), "optimizer.name": "adamw", "optimizer.learning_rate": 0.01, "schedule.warmup": 0}
  return config("distil", **{**learn, "distill.top_k": 8, "steps": 3, "loss_chunks": 9, "data.accumulate": ((0, 2),), **changes})


@pytest.fixture(scope="module")
def stored(teacher, tmp_path_factory):
  workdir = tmp_path_factory.mktemp("stored") / "w"
  stage.run(teach(teacher), workdir)
  return workdir


@pytest.fixture(scope="module")
def taught(stored, tmp_path_factory):
  workdir = tmp_path_factory.mktemp("taught") / "w"
  stage.run(distil(**{"distill.stored": str(stored)}), workdir)
  return workdir


def contents(workdir):
  """Every row of a store, by batch and checksum."""
  found = {}
  for _, _, files in store.pieces(workdir):
    for path in files:
      with np.load(path) as f:
        ends = np.cumsum(f["count"])
        for i, key in enumerate(zip(f["batch"].tolist(), f["checksum"].tolist())):
          found[key] = f["log_probs"][ends[i] - f["count"][i] : ends[i]], f["ids"][ends[i] - f["count"][i] : ends[i]]
  return found


def assert_same_store(a, b):
  a, b = contents(a), contents(b)
  assert a.keys() == b.keys() and all(np.array_equal(x, y) for key in a for x, y in zip(a[key], b[key], strict=True))


def test_with_all_tokens_a_store_is_its_teacher(teacher, taught, tmp_path):
  """But for the rounding to float16; with eight of 1152, the divergence is less."""
  stage.run(teach(teacher, steps=2, **{"distill.top_k": TEACHER.vocab_size}), tmp_path / "store")
  stage.run(distil(steps=1, **{"distill.teacher": str(teacher)}), tmp_path / "online")
  stage.run(distil(steps=1, **{"distill.top_k": TEACHER.vocab_size, "distill.stored": str(tmp_path / "store")}), tmp_path / "stored")
  (online,), (same,), (few, *_) = (losses(w) for w in (tmp_path / "online", tmp_path / "stored", taught))
  assert same == pytest.approx(online, rel=2e-4) and online["loss_parts/divergence"] > 0.1
  assert few["loss_parts/cross_entropy"] == pytest.approx(online["loss_parts/cross_entropy"], rel=1e-5)
  assert 0.1 * online["loss_parts/divergence"] < few["loss_parts/divergence"] < 0.9 * online["loss_parts/divergence"]


def test_what_was_said_before_the_data_end_is_stored(teacher, tmp_path):
  c = teach(teacher)
  for source in c.data.sources.values():
    with source.unlocked():
      source.max_examples = 20
  for _ in range(2):  # the second finds nothing more to do
    with pytest.raises(ValueError, match="the data end after batch [1-5] of 6; raise the sources' epochs or caps, or set steps = [1-5]"):
      stage.run(c, tmp_path / "w")
    assert 1 <= store.stop(tmp_path / "w") < BATCHES


def test_what_is_stored(stored):
  """Positions with loss alone, in narrow types, three files of two batches."""
  assert [(a, b, len(files)) for a, b, files in store.pieces(stored)] == [(0, 2, 1), (2, 4, 1), (4, 6, 1)] and store.stop(stored) == BATCHES
  for log_probs, ids in contents(stored).values():
    assert log_probs.dtype == np.float16 and ids.dtype == np.uint16 and log_probs.shape == (len(ids), 9) and ids.max() < TEACHER.vocab_size
    np.testing.assert_allclose(np.exp(log_probs.astype(np.float32)).sum(-1), 1.0, atol=2e-3)
  lines = metrics.read(stored)
  assert [r["step"] for r in lines] == [1, 2, 3, 4, 5, 6] and all(0 < r["other_tokens_probability"] < 1 < r["loss"] for r in lines)
  assert sum(len(ids) for _, ids in contents(stored).values()) < sum(r["tokens/prose"] for r in lines[-1:]) + lines[-1]["tokens/reasoning"]
  assert [store.id_type(v) for v in (256, 257, 65_536, 65_537)] == [np.uint8, np.uint16, np.uint16, np.uint32]


def test_an_interrupted_job_goes_on(teacher, stored, tmp_path, monkeypatch, capsys):
  """After the files that are whole, then with more steps; on another mesh, on which the rows lie in another order."""
  def fail(*arguments, save=store.save):
    if arguments[1]:
      raise KeyboardInterrupt
    save(*arguments)

  with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
    patch.setattr(store, "save", fail)
    stage.run(teach(teacher), tmp_path)
  assert store.stop(tmp_path) == 2
  stage.run(teach(teacher, steps=4, **{"mesh.fsdp": 4, "mesh.tensor": 2}), tmp_path)
  written = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.npz")}
  stage.run(teach(teacher, steps=4), tmp_path)
  assert "4 batches stored before" in capsys.readouterr().err
  stage.run(teach(teacher, checkpoint_every=100), tmp_path)
  assert written.items() <= {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.npz")}.items()
  found, expected = contents(tmp_path), contents(stored)
  assert found.keys() == expected.keys()
  for key in expected:
    np.testing.assert_allclose(*(np.float32(x[key][0]) for x in (found, expected)), atol=5e-3)
  with pytest.raises(ValueError, match="was trained with seed = 0, now it is 1"):
    stage.run(teach(teacher, seed=1), tmp_path)


def test_a_student_stopped_and_resumed_is_bit_identical(stored, taught, tmp_path):
  for last in (2, None):
    stage.run(distil(**{"distill.stored": str(stored)}), tmp_path / "w", stop_after=last)
  assert losses(tmp_path / "w") == losses(taught) and len(losses(taught)) == 3
  assert_same_params(tmp_path / "w", taught)


def test_a_stage_of_a_recipe_stores_for_one_behind_it(tmp_path, capsys, monkeypatch):
  """Which starts from the stage before the store, as that leaves no weights."""
  text = config("text", **{"steps": 2, "optimizer.name": "adamw"})
  whole = ConfigDict({"order": ("text", "words", "distil"), "evaluation": {}, "stages": {
      "text": text, "words": teach("text"), "distil": distil(**{"distill.stored": "words"})}})
  recipe.run(whole, tmp_path)
  (_, first, _), (_, words, teaching), (_, last, student) = recipe.stages(whole, tmp_path)
  assert teaching.distill.teacher == student.init_from == first and student.distill.stored == words and teaching.init_from == ""
  assert store.stop(words) == BATCHES and [r["step"] for r in losses(last)] == [1, 2, 3]
  capsys.readouterr()
  monkeypatch.setattr(stage, "run", None)
  recipe.run(whole, tmp_path)
  assert capsys.readouterr().err.count("done before") == 3
  shutil.rmtree(words)
  with pytest.raises(ValueError, match="3-distil started from an earlier run of words, which is to be trained anew"):
    recipe.run(whole, tmp_path)
  whole.stages.words.preset = ""  # now the batches are those of the checkpoint before it
  assert recipe.stages(whole, tmp_path)[1][2].init_from == first


@pytest.mark.parametrize("changes,words", [
    ({"starts": {"distil": "words"}}, "starts.distil = 'words' is no stage before it; use '' for random weights, or one of text"),
    ({"starts": {"words": "text"}}, "starts.words is set, but words stores a teacher's words for the batches of a preset; remove it"),
    ({"evaluation": {"before": "words"}}, "evaluation.before = 'words' is no stage of the order; use text, distil")])
def test_nothing_starts_from_a_store(changes, words):
  stages = {"text": config("text"), "words": teach("text"), "distil": distil()}
  with pytest.raises(ValueError, match=re.escape(words)):
    recipe.stages(ConfigDict({"order": ("text", "words", "distil"), "stages": stages, "evaluation": {}, **changes}), "W")


def test_batches_of_a_ramp():
  knots = ((0, 1), (2, 3), (4, 2))
  for steps in range(8):
    assert accumulate.total(knots, steps) == sum(accumulate.batches(knots, i) for i in range(steps))


@pytest.mark.parametrize("changes,words", [
    ({"seed": 1}, "was written with seed = 0, this stage has 1; set it back, or write another store"), ({"data.length": 48}, "data.length = 32"),
    ({"data.rows": 16}, "data.rows = 8"), ({"data.overlong": "split"}, "data.overlong = \"truncate\""), ({"data.sources.prose.share": 0.4}, "data.sources.prose.share = 0.5"),
    ({"distill.top_k": 4}, "distill.top_k = 8"), ({"distill.top_k": 2000}, "distill.top_k 2000 exceeds the vocabulary of 1152"), ({"distill.temperature": 1.0}, "distill.temperature = 2.0"),
    ({"steps": 4}, "holds 6 batches, this stage takes 8; run the stage that wrote it on with steps = 8"),
    ({"distill.teacher": "/t"}, "takes the teacher's place in a stage that distils"), ({"objective": "lm"}, "takes the teacher's place"),
    ({"distill.stored": "/nowhere"}, "no checkpoint directory at /nowhere"), ({"preset": "miniature", "data.length": 128}, "exceeds the context of distill.stored")])
def test_a_student_refuses_a_store_of_other_batches(changes, words, stored, tmp_path):
  with pytest.raises(ValueError, match=re.escape(words)) as error:
    stage.run(distil(**{"distill.stored": str(stored), **changes}), tmp_path / "w")
  assert "\n" not in str(error.value) and not (tmp_path / "w").exists()


def test_a_store_must_be_whole_and_of_the_same_data(stored, taught, tmp_path):
  def refused(words, directory=tmp_path / "store"):
    with pytest.raises(ValueError, match=words):
      stage.run(distil(**{"distill.stored": str(directory)}), tmp_path / "w")
    assert not (tmp_path / "w").exists()

  shutil.copytree(stored, tmp_path / "store")
  first, second, _ = sorted((tmp_path / "store" / "top_k").glob("*.npz"))
  with np.load(first) as f:
    np.savez(tmp_path / "other.npz", **{**f, "checksum": f["checksum"] + np.uint64(1)})
  whole = first.read_bytes()
  (tmp_path / "other.npz").rename(first)
  refused("row 0 of batch 0 is not what .*store was written from: the data have changed; write another")
  first.write_bytes(whole[: len(whole) // 2] + b"x" + whole[len(whole) // 2 + 1 :])
  refused("2.*npz is damaged; remove it and run the stage that wrote it again")
  first.write_bytes(whole)
  second.rename(second.with_name(second.name.replace("0-of-1", "0-of-2")))  # a part of two, the other not there
  refused("holds 2 batches, this stage takes 6")
  refused("is no store of a teacher's words; write one", taught)


@pytest.mark.parametrize("changes,words", [
    ({"optimizer.b1": 0.8}, "optimizer.b1 is set, but a stage that teaches trains nothing"), ({"distill.share": 0.1}, "distill.share is set"),
    ({"preset": ""}, "preset and init_from are both empty"), ({"keep": 3}, "keep is set"), ({"init_from": "/x"}, "init_from is set beside preset"),
    ({"data.accumulate": ((0, 2),)}, "set steps to the batches of all steps"), ({"distill.teacher": ""}, "set a teacher with distill or teach"),
    ({"distill.top_k": 0}, "distill.top_k 0 must be at least 1")])
def test_what_cannot_teach_leaves_nothing(changes, words, teacher, tmp_path):
  with pytest.raises(ValueError, match=re.escape(words)):
    stage.run(teach(teacher, **changes), tmp_path / "w")
  assert not (tmp_path / "w").exists()
