"""A miniature of the miniature, end to end: every stage, stop, resume, report, generate; test_supervise.py has it killed."""

import json

import cv2
import jax
import numpy as np
import pytest

import bluelm_jax
from bluelm_jax.data import images
from bluelm_jax.data import sources
from bluelm_jax.models import presets
from bluelm_jax.training import defaults
from bluelm_jax.training import metrics
from bluelm_jax.training import recipe
from bluelm_jax.training import stage
from tests import doors
from tests.training import tiny


def door(name, *flags):
  return doors.run(f"bluelm_jax.{name}", *flags)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """The workdirs whole and broken of `tiny`."""
  directory = tmp_path_factory.mktemp("recipe")
  out = doors.run("tests.training.tiny", directory)
  assert out.returncode == 0, out.stderr
  return directory


@pytest.fixture(scope="module")
def finished(run):
  """A workdir in which the recipe ran without a break."""
  return run / "whole"


def losses(directory):
  return [(r["step"], r["loss"]) for r in metrics.read(directory)]


def params_of(directory):
  return bluelm_jax.load_pretrained(directory)[1]


def test_every_stage_stopped_and_resumed_is_bit_identical(finished, run):
  directories = sorted(p.name for p in finished.iterdir())
  assert directories == ["1-text", "2-vision", "3-adapter", "4-joint", "5-sft"]
  for name in directories:
    assert losses(run / "broken" / name) == losses(finished / name) and len(losses(finished / name)) == tiny.STEPS
    assert jax.tree.all(jax.tree.map(np.array_equal, params_of(run / "broken" / name), params_of(finished / name)))


def test_finished_stages_are_not_run_again(finished, monkeypatch, capsys):
  monkeypatch.setitem(presets.PRESETS, "miniature", tiny.shallow)
  before = {p: p.stat().st_mtime_ns for p in finished.rglob("metrics.jsonl")}
  recipe.run(tiny.config(), finished)
  assert capsys.readouterr().err.count("done before") == 5
  assert {p: p.stat().st_mtime_ns for p in finished.rglob("metrics.jsonl")} == before


def test_stages_train_what_they_should(finished):
  """Vision and adapter stages leave the language model alone; joint moves everything."""
  text, vision, adapter, joint = (params_of(finished / d) for d in ("1-text", "2-vision", "3-adapter", "4-joint"))
  same = lambda a, b: jax.tree.all(jax.tree.map(np.array_equal, a, b))
  assert same(text["decoder"], vision["decoder"]) and not same(text["vision"], vision["vision"])
  assert same(vision["vision"], adapter["vision"]) and same(vision["decoder"], adapter["decoder"])
  assert not same(vision["adapter"], adapter["adapter"])
  assert all(not same(adapter[part], joint[part]) for part in ("vision", "adapter", "decoder"))


def test_report(finished):
  counts = [f"--config.evaluation.{k}_items={n}" for k, n in (("grounding", 6), ("reasoning", 8), ("screen", 6))]
  out = door("evaluate", "--config=configs/recipes/miniature.py", f"--workdir={finished}", *counts)
  assert out.returncode == 0 and "NOT SHOWN" in out.stdout and "SHOWN" not in out.stdout.replace("NOT SHOWN", ""), out.stderr
  values = json.loads((finished / "report.json").read_text())
  assert {f["name"] for f in values["figures"]} >= {"grounding accuracy", "grounding, image blanked", "reasoning, answering at once"}
  assert all(f["low"] <= f["value"] <= f["high"] for f in values["figures"])
  assert values["claims"] and not any(c["holds"] for c in values["claims"])  # untrained, and too few items
  page = (finished / "report.html").read_text()
  assert page.count("<polyline") == 6 and "Thinking within a budget" in page and page.count("<figure>") == 6 and "not shown" in page
  assert cv2.imread(str(finished / "grounding.png")) is not None


def test_generate_speaks_about_a_screen(finished, tmp_path):
  sample = sources.read_shard("assets/screens-test.array_record")[0]
  cv2.imwrite(str(tmp_path / "a.png"), images.decode(sample.images[0])[..., ::-1])
  out = door(
      "generate", f"--checkpoint={finished}", f"--image={tmp_path / 'a.png'}", "--prompt=Point to the back arrow.", "--thinking", "--max_tokens=8")
  assert out.returncode == 0 and not out.stderr, out.stderr
  assert out.stdout.endswith("\n")


@pytest.mark.parametrize("flags,words", [
    (("train", "--config=configs/stages/text.py", "--config.stepz=3"), "steps"),
    (("train", "--config=configs/stages/text.py", "--config.data.length=4096"), "context"),
    (("train", "--config=configs/stages/text.py", "--config.mesh.fsdp=3"), "devices"),
    (("train", "--config=configs/stages/adapter.py", "--config.init_from=/nowhere"), "/nowhere"),
    (("train", "--config=configs/stages/text.py", "surplus"), "surplus"),
    (("recipe", "--config=configs/recipes/miniature.py", "--config.stages.text.sped=3"), "seed"),
    (("evaluate", "--config=configs/recipes/miniature.py"), "not finished"),
])
def test_doors_refuse_in_one_line_and_write_nothing(flags, words, tmp_path):
  name, *rest = flags
  out = door(name, *rest, f"--workdir={tmp_path / 'w'}")
  assert out.returncode == 2, out.stderr
  assert out.stderr.startswith("error: ") and out.stderr.count("\n") == 1 and words in out.stderr
  assert not list(tmp_path.glob("w/*/checkpoints")) and not (tmp_path / "w" / "checkpoints").exists()


def test_a_workdir_or_start_of_another_preset_is_refused(finished, tmp_path):
  config = defaults.load(doors.ROOT / "configs/stages/text.py:small")
  with pytest.raises(ValueError, match="another preset"):
    stage.run(config, finished / "1-text")
  assert json.loads((finished / "1-text" / "model.json").read_text())["decoder"]["embed_dim"] == 128
  config.init_from, config.data.workers = str(finished / "1-text"), 0  # no processes that read ahead
  with pytest.raises(ValueError, match="expected.*another preset|another preset.*expected") as error:
    stage.run(config, tmp_path / "w")
  assert "\n" not in str(error.value) and not (tmp_path / "w").exists()
