"""A workdir goes on with the config it was begun with, and with no other."""

import gc
import json
import pathlib
import shutil

import pytest

from bluelm_jax.interop import manifest
from bluelm_jax.models import presets
from bluelm_jax.models.config import DecoderConfig
from bluelm_jax.training import defaults
from bluelm_jax.training import recipe
from bluelm_jax.training import record
from bluelm_jax.training import stage
from tests.bench import machine
from tests.training.programs import programs  # noqa: F401  (for every test here)

NAMES = ("text", "more")
MODEL = DecoderConfig(vocab_size=1152, num_layers=1, embed_dim=16, num_heads=2, num_kv_heads=1, head_dim=8, mlp_dim=24)


def tiny():
  """Two text stages of two steps, the second from the first."""
  config = defaults.load(f"{machine.ROOT}/configs/stages/text.py:miniature")
  config.steps, config.checkpoint_every, config.data.rows, config.data.length = 2, 1, 8, 32
  config.preset, config.optimizer.name = "tiny", "adamw"
  stages = {name: config.copy_and_resolve_references() for name in NAMES}
  return type(config)({"order": NAMES, "stages": stages, "evaluation": {}})


@pytest.fixture(scope="module", autouse=True)
def preset():
  with pytest.MonkeyPatch.context() as patch:
    patch.setitem(presets.PRESETS, "tiny", lambda: MODEL)
    yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("recipe")
  recipe.run(tiny(), workdir)
  return workdir


@pytest.fixture
def workdir(trained, tmp_path):
  shutil.copytree(trained, tmp_path / "w")
  return tmp_path / "w"


def files(workdir):
  return {p: p.stat().st_mtime_ns for p in workdir.rglob("*")}


@pytest.mark.parametrize("change,words", [
    ({"optimizer.learning_rate": 0.5}, "was trained with optimizer.learning_rate = 0.002, now it is 0.5; set it back, choose another --workdir"),
    ({"steps": 3}, "was trained with steps = 2, now it is 3"), ({"seed": 1}, "seed = 0, now it is 1"),
    ({"data.sources.prose.share": 0.6}, "data.sources.prose.share = 0.5"), ({"trainable": ("decoder/.*",)}, "trainable"),
    ({"init_from": "elsewhere"}, "started from \"\", and init_from = \"elsewhere\" is not that run"), ({"data.length": 64}, "data.length = 32")])
def test_another_config_is_refused(change, words, trained):
  config, before = tiny(), files(trained)
  config.stages.text.update_from_flattened_dict(change)
  with pytest.raises(ValueError, match=words):
    stage.run(config.stages.text, trained / "1-text")
  if "init_from" not in change:
    with pytest.raises(ValueError, match=words):
      recipe.run(config, trained)
  assert files(trained) == before


def test_what_is_not_learnt_may_change(workdir, capsys):
  config = tiny()
  for name in NAMES:
    part = config.stages[name]
    part.name, part.log_every, part.checkpoint_every, part.keep, part.zero, part.layout = "other", 7, 7, 3, 2, "zigzag"
    part.execution.remat, part.mesh.fsdp, part.mesh.data = "full", 1, 8
  before = files(workdir)
  recipe.run(config, workdir)  # at another place than where it was trained
  assert "text: done before, at step 2" in capsys.readouterr().err
  stage.run(config.stages.text, workdir / "1-text")
  assert "already at step 2 of 2" in capsys.readouterr().err
  assert files(workdir) == before


def test_a_stage_does_not_outlive_what_it_started_from(workdir):
  shutil.rmtree(workdir / "1-text")
  with pytest.raises(ValueError, match="2-more started from an earlier run of text"):
    recipe.run(tiny(), workdir)
  assert not (workdir / "1-text").exists()
  stage.run(tiny().stages.text, workdir / "1-text")
  with pytest.raises(ValueError, match="2-more started from .*1-text\" is not that run"):
    recipe.run(tiny(), workdir)


def test_a_workdir_without_a_checkpoint_may_change(workdir):
  shutil.rmtree(workdir / "2-more" / "checkpoints")
  config = tiny()
  config.stages.more.seed = 5
  recipe.run(config, workdir)
  assert json.loads((workdir / "2-more" / record.FILE_NAME).read_text())["config"]["seed"] == 5


@pytest.mark.parametrize("name", [record.FILE_NAME, "done.json"])
@pytest.mark.parametrize("text", ["{", "[]", "{}"])
def test_damaged_records_are_named(name, text, workdir):
  (workdir / "1-text" / name).write_text(text)
  with pytest.raises(ValueError, match=f"1-text/{name} is damaged"):
    recipe.run(tiny(), workdir)


def test_the_start_may_be_removed_once_a_stage_has_begun(workdir):
  config = tiny().stages.more
  config.init_from = json.loads((workdir / "2-more" / record.FILE_NAME).read_text())["config"]["init_from"]
  shutil.move(workdir / "2-more", workdir / "moved")
  away = pathlib.Path(config.init_from)
  assert away.is_dir()
  record.check(workdir / "moved", config)
  shutil.rmtree(workdir / "1-text")
  config.init_from = str(workdir / "1-text")
  with pytest.raises(ValueError, match="init_from"):
    record.check(workdir / "moved", config)


@pytest.mark.parametrize("part,words", [
    ("optimizer", "Item \"optimizer\" was not found"), ("data", "Item \"data\" was not found"), ("params", "Item \"params\" was not found"),
    ("params/*", "checkpoints/2 is damaged .*; use an older checkpoint"), ("optimizer/*", "checkpoints/2 is damaged .*; use an older checkpoint")])
def test_a_damaged_checkpoint_is_one_line(part, words, workdir, capfd):
  """An item that is gone, or whose largest file is cut; no traceback of an abandoned task is printed."""
  item = workdir / "1-text" / "checkpoints" / "2" / part.split("/")[0]
  largest = max((p for p in item.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
  largest.write_bytes(largest.read_bytes()[:100])
  if part == item.name:
    shutil.rmtree(item)
  shutil.rmtree(item.parent.with_name("1"))
  config = tiny().stages.text
  config.steps = 3
  for name in (record.FILE_NAME, f"checkpoints/2/{manifest.FILE_NAME}"):
    (workdir / "1-text" / name).unlink()  # of an earlier version, which had none
  with pytest.raises(ValueError, match=words) as error:
    stage.run(config, workdir / "1-text")
  assert "\n" not in str(error.value)
  del error
  gc.collect()
  assert "Traceback" not in capfd.readouterr().err


def test_a_run_from_before_a_key_goes_on_with_its_default(workdir):
  config = tiny().stages.text
  file = workdir / "1-text" / "stage.json"
  stored = json.loads(file.read_text())
  del stored["config"]["loss_chunks"], stored["config"]["distill"], stored["config"]["optimizer"]["moment_dtype"], stored["teacher"]
  file.write_text(json.dumps(stored))
  record.check(workdir / "1-text", config)
  config.optimizer.moment_dtype = "bfloat16"
  with pytest.raises(ValueError, match='was trained with optimizer.moment_dtype = "", now it is "bfloat16"'):
    record.check(workdir / "1-text", config)
