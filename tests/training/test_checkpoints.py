"""Checkpoints: which stay, what a damaged one or a full disk does, other meshes, and their HuggingFace form."""

import errno
import os

import jax
import numpy as np
import pytest

import bluelm_jax
from bluelm_jax.models import presets
from bluelm_jax.models import serialize
from bluelm_jax.sharding import rules
from bluelm_jax.training import checkpoints
from bluelm_jax.training import manifest
from bluelm_jax.training import metrics
from bluelm_jax.training import optimizer
from bluelm_jax.training import record
from bluelm_jax.training import stage
from tests.training import faulty


@pytest.fixture(autouse=True)
def preset():
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(presets, "PRESETS", dict(presets.PRESETS))
    faulty.add_preset()
    yield


def config(steps=4, **changes):
  c = faulty.config()
  c.steps, c.data.rows, c.schedule.kind, c.schedule.warmup = steps, 8, "constant", 1
  c.update(changes)
  return c


def saved(workdir):
  return sorted(int(p.name) for p in (workdir / "checkpoints").iterdir() if p.name.isdigit())


def spoil(workdir, step, how):
  """Does something to the largest file of a checkpoint; its name."""
  path = max((p for p in (workdir / "checkpoints" / str(step)).rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 1
  path.unlink() if how == "removed" else path.write_bytes(data if how == "flipped" else data[:-1])
  return path.name


def test_some_stay_for_good(tmp_path):
  stage.run(config(6, checkpoint_every=1, keep=2, keep_every=3), tmp_path)
  assert saved(tmp_path) == [3, 5, 6]
  for step in saved(tmp_path):
    directory = tmp_path / "checkpoints" / str(step)
    assert manifest.problem(directory) is None and (directory / manifest.FILE_NAME).is_file()


@pytest.mark.parametrize("how,words", [("cut", "bytes, not"), ("flipped", "does not have its checksum"), ("removed", "is missing")])
def test_a_damaged_one_gives_way_to_the_one_before(how, words, tmp_path, capsys):
  c = config(6, checkpoint_every=2)
  stage.run(c, tmp_path, stop_after=4)
  before = metrics.read(tmp_path)
  name = spoil(tmp_path, 4, how)
  stage.run(c, tmp_path, stop_after=5)
  warning = next(line for line in capsys.readouterr().err.splitlines() if line.startswith("warning"))
  assert name in warning and words in warning and "going on from 2" in warning
  after = metrics.read(tmp_path)
  assert [r["step"] for r in after] == [1, 2, 3, 4, 5] and [r["loss"] for r in after[:4]] == [r["loss"] for r in before]
  assert saved(tmp_path) == [4, 5] and [p.name.split("-")[0] for p in (tmp_path / "damaged").iterdir()] == ["4"]


def test_without_a_whole_one_nothing_is_touched(tmp_path):
  c = config(6, checkpoint_every=1)
  stage.run(c, tmp_path, stop_after=2)
  for step in (1, 2):
    spoil(tmp_path, step, "cut")
  with pytest.raises(ValueError, match=r"no checkpoint of .* is whole \(2: .*bytes, not") as error:
    stage.run(c, tmp_path)
  assert "\n" not in str(error.value) and saved(tmp_path) == [1, 2] and not (tmp_path / "damaged").exists()


def test_a_full_disk_stops_the_run_and_leaves_what_is_whole(tmp_path, monkeypatch):
  c, write = config(6, checkpoint_every=2), manifest.write

  def full(directory):
    if directory.name.startswith("4"):
      raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    write(directory)

  monkeypatch.setattr(manifest, "write", full)
  with pytest.raises(ValueError, match="no room on the disk of .* goes on from step 2") as error:
    stage.run(c, tmp_path)
  assert "\n" not in str(error.value) and saved(tmp_path) == [2]
  monkeypatch.setattr(manifest, "write", write)
  stage.run(c, tmp_path)
  assert saved(tmp_path) == [4, 6] and [r["step"] for r in metrics.read(tmp_path)] == [1, 2, 3, 4, 5, 6]
  assert not [p for p in (tmp_path / "checkpoints").iterdir() if "tmp" in p.name]  # what was half-written


def test_a_checkpoint_moves_to_other_meshes(tmp_path):
  """From eight devices to one, from one to four."""
  c = config(2)
  stage.run(c, tmp_path)
  model, tx = serialize.build(stage.described_model(c)), optimizer.make_optimizer(c.optimizer, c.schedule, c.steps)

  def on(devices, fsdp):
    mesh = rules.make_mesh({"fsdp": fsdp, "data": devices // fsdp}, jax.devices()[:devices])
    create, _, shardings = stage.abstract_state(c, model, tx, mesh)
    return jax.jit(create, out_shardings=shardings)(jax.random.key(1))

  workdir, found = tmp_path, []
  for devices, fsdp in ((8, 8), (1, 1), (4, 2)):
    state, data_state = checkpoints.Checkpoints(workdir, 1).restore(on(devices, fsdp))
    found.append((jax.device_get(state), data_state))
    assert len(state.trainable["decoder/embedding"].sharding.device_set if "decoder/embedding" in state.trainable else next(iter(state.trainable.values())).sharding.device_set) == devices
    workdir = tmp_path / str(devices)
    keeper = checkpoints.Checkpoints(workdir, 1)
    keeper.save(state, data_state)
    keeper.close()
  for state, data_state in found[1:]:
    assert jax.tree.all(jax.tree.map(np.array_equal, state, found[0][0])) and data_state == found[0][1]


def test_exports_by_step_and_at_the_end(tmp_path):
  c = config(3, checkpoint_every=10, export_every=2)
  stage.run(c, tmp_path)
  assert sorted(p.name for p in (tmp_path / "export").iterdir()) == ["2", "3"]
  found, expected = bluelm_jax.load_pretrained(tmp_path / "export" / "3")[1], bluelm_jax.load_pretrained(tmp_path)[1]
  assert jax.tree.all(jax.tree.map(np.array_equal, found, expected))
  before = {p: p.stat().st_mtime_ns for p in (tmp_path / "export").rglob("*")}
  stage.run(c, tmp_path)
  assert before == {p: p.stat().st_mtime_ns for p in (tmp_path / "export").rglob("*")}
  (tmp_path / "export/3/config.json").parent.rename(tmp_path / "gone")
  stage.run(c, tmp_path)  # as after a kill between the last checkpoint and its export
  assert (tmp_path / "export/3/config.json").is_file() and record.latest_step(tmp_path) == 3
