"""Proxy runs of a tiny model on a prepared data set, ended in their midst and taken up, and the mixture that prepare fits to them."""

import json

import numpy as np
import pytest

pytest.importorskip("apache_beam")

from bluelm_jax.data import sources
from bluelm_jax.pipeline import defaults as dataset
from bluelm_jax.pipeline import mixture
from bluelm_jax.pipeline import run as prepare
from bluelm_jax.training import defaults
from bluelm_jax.training import proxies
from bluelm_jax.training import stage
from tests import doors
from tests.pipeline.test_prepare import ONE
from tests.training import faulty
from tests.training.presets import preset  # noqa: F401  (for every test here)
from tests.training.programs import programs  # noqa: F401  (for every test here)


def dataset_config(folder, **changes):
  c = dataset.dataset()
  c.name, c.holdout, c.quality.rules = "test", 4, ()
  c.sources.prose = dict(kind="json", path=f"{folder}/*.jsonl", licence="MIT")
  c.mixture.update(changes)
  return c


def config(**changes):
  c = proxies.config()
  with c.unlocked():
    c.stage = faulty.config()
  c.stage.data.sources, c.stage.steps, c.stage.data.rows, c.stage.evaluate.batches, c.runs = {}, 3, 8, 3, 4
  c.update_from_flattened_dict(changes)
  return c


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  """(raw files, what prepare makes of them): Chinese and English prose."""
  raw, made = (tmp_path_factory.mktemp(name) for name in ("raw", "made"))
  shard = sources.read_shard("assets/text-train.array_record")
  (raw / "a.jsonl").write_text("\n".join(json.dumps({"text": shard[i].text}) for i in range(60)))
  prepare.run(dataset_config(raw), str(made), ONE)
  return raw, made


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
  output = tmp_path_factory.mktemp("whole") / "runs.json"
  return proxies.run(config(), str(data[1]), str(output)), output


def test_runs_are_mixtures_with_the_mean_of_the_groups_losses(whole):
  found, output = whole
  assert found == json.loads(output.read_text()) and [r["run"] for r in found] == [0, 1, 2, 3] and list(output.parent.iterdir()) == [output]
  for r in found:
    assert set(r["shares"]) == set(r["losses"]) == {"en", "zh"} and sum(r["shares"].values()) == pytest.approx(1)
    assert r["loss"] == pytest.approx(sum(r["losses"].values()) / 2) and 5 < r["loss"] < 8
  assert len({r["shares"]["zh"] for r in found}) == len({r["loss"] for r in found}) == 4


def test_ended_in_a_run_it_goes_on_to_the_same_losses(data, whole, tmp_path, monkeypatch):
  output, began, real = tmp_path / "runs.json", [], stage.run

  def dying(c, workdir, life=None):
    began.append(workdir.name)
    if len(began) == 1:
      real(c, workdir, stop_after=2)
      raise KeyboardInterrupt
    real(c, workdir, life=life)

  monkeypatch.setattr(stage, "run", dying)
  output.write_text(json.dumps(whole[0][:2]))
  with pytest.raises(KeyboardInterrupt):
    proxies.run(config(), str(data[1]), str(output))
  assert len(json.loads(output.read_text())) == 2 and (tmp_path / began[0] / "checkpoints" / "2").is_dir()
  mark = began[0][5:-4]
  assert mark == whole[0][0]["made_of"]  # a run of other data or another config does not go on from this one
  assert proxies.run(config(), str(data[1]), str(output)) == whole[0]
  assert began == [f"runs-{mark}-{i}" for i in ("002", "002", "003")] and list(tmp_path.iterdir()) == [output]


def test_more_runs_leave_those_that_were_made():
  few, many = ([proxies.shares(np.array([0.2, 0.8]), 0, i, 4.0).tolist() for i in range(n)] for n in (3, 5))
  assert many[:3] == few and len(set(map(tuple, many))) == 5
  drawn = np.array([proxies.shares(np.array([0.2, 0.8]), 0, i, 4.0) for i in range(500)])
  assert abs(drawn[:, 0].mean() - 0.2) < 0.03 and drawn.min() >= 0.9 * proxies._LEAST


def test_targets_weigh_the_losses_and_need_no_other_group(data, tmp_path):
  c = config(**{"stage.steps": 3})
  with c.unlocked():
    c.targets = {"zh": 3, "en": 1}
  weights = proxies._weights(c, ["en", "zh"])
  (tmp_path / "evaluation.jsonl").write_text(json.dumps({"step": 3, "loss/group_000": 2.0, "loss/group_001": 4.0}) + "\n")
  assert proxies._losses(tmp_path, c, ["en", "zh"], weights) == {"loss": 3.5, "losses": {"en": 2.0, "zh": 4.0}}
  with c.unlocked():
    c.targets = {"zh": 2}
  assert proxies._weights(c, ["en", "zh"]) == {"zh": 1.0}
  found = proxies._stage(c, str(data[1]), ["en", "zh"], {"zh": 1.0}, np.array([0.25, 0.75]), 0)
  assert [(n, s.share) for n, s in found.data.sources.items()] == [("group_000", 0.25), ("group_001", 0.75)] and list(found.evaluate.sources) == ["group_001"]
  (tmp_path / "evaluation.jsonl").write_text(json.dumps({"step": 3, "loss/group_000": 2.0}) + "\n")
  with pytest.raises(ValueError, match="no held-out token of group 'zh'"):
    proxies._losses(tmp_path, c, ["en", "zh"], {"zh": 1.0})


def test_prepare_fits_the_mixture_to_a_file_of_runs(data, whole, tmp_path):
  file = tmp_path / "runs.json"
  falling = [{**r, "loss": 4 - r["shares"]["zh"]} for r in whole[0]]
  file.write_text(json.dumps(falling))
  c = dataset_config(data[0], rule="fitted", runs=str(file))
  shares = {g: x["share"] for g, x in prepare.run(c, str(data[1]), ONE)["groups"].items()}
  assert shares["zh"] > 0.8
  key = lambda: (data[1] / "stages/select/key").read_text()
  before = key()
  prepare.run(dataset_config(data[0], rule="fitted", runs=[{k: r[k] for k in ("shares", "loss")} for r in falling]), str(data[1]), ONE)
  assert key() == before  # a file is what it holds
  file.write_text(json.dumps([{**r, "loss": 4 - r["shares"]["en"]} for r in whole[0]]))
  shares = {g: x["share"] for g, x in prepare.run(c, str(data[1]), ONE)["groups"].items()}
  assert shares["en"] > 0.8 and key() != before


@pytest.mark.parametrize("runs, reason", [("/nowhere/runs.json", "cannot be read"), ([{"shares": {"zh": 1.0}}], "no list of runs"), ([3], "no list of runs"), ([{"shares": {"zh": 1.0}, "loss": "low"}], "no list of runs")])
def test_runs_that_are_none_are_refused(runs, reason):
  with pytest.raises(ValueError, match=reason):
    mixture.proxy_runs(runs)


def test_mistakes_are_told(data, whole, tmp_path):
  _, made = data
  bare = tmp_path / "bare"
  bare.mkdir()
  manifest = json.loads((made / "manifest.json").read_text())
  refused = [(config(runs=3), made, whole[1], "at least 4"), (config(concentration=0.0), made, whole[1], "concentration is 0"), (config(), tmp_path, whole[1], "no manifest"), (config(seed=1), made, whole[1], "another config")]
  wrong = config()
  with wrong.unlocked():
    wrong.targets = {"fr": 1.0}
  refused.append((wrong, made, whole[1], "no group"))
  for name in manifest["shards"]:
    if "-train-" in name:
      (bare / name).write_bytes((made / name).read_bytes())
  (bare / "manifest.json").write_text(json.dumps(manifest))
  refused.append((config(), bare, tmp_path / "new.json", "no held-out shard"))
  for c, where, output, reason in refused:
    with pytest.raises(ValueError, match=reason):
      proxies.run(c, str(where), str(output))


def test_the_door_names_its_mistake(tmp_path):
  done = doors.run("bluelm_jax.proxies", f"--config={doors.ROOT}/configs/proxies.py", f"--data={tmp_path}")
  assert done.returncode == 2 and done.stderr.startswith("error: ") and "no manifest" in done.stderr and done.stderr.count("\n") == 1
