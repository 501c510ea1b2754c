"""Checkpoints: which stay, what a damaged one or a full disk does, other meshes, and their HuggingFace form."""

import errno
import os
import shutil

import jax
import numpy as np
import pytest

import bluelm_jax
from bluelm_jax.interop import load
from bluelm_jax.interop import manifest
from bluelm_jax.models import serialize
from bluelm_jax.sharding import rules
from bluelm_jax.training import checkpoints
from bluelm_jax.training import optimizer
from bluelm_jax.training import stage
from tests.training import faulty
from tests.training.presets import preset  # noqa: F401  (for every test here)
from tests.training.programs import programs  # noqa: F401  (for every test here)


def config():
  c = faulty.config()
  c.data.rows, c.steps, c.checkpoint_every, c.keep, c.keep_every, c.export_every = 8, 6, 1, 2, 3, 4
  return c


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("trained")
  stage.run(config(), workdir)
  return workdir


@pytest.fixture
def workdir(trained, tmp_path):
  return shutil.copytree(trained, tmp_path / "w")


def like(devices=8, fsdp=8):
  """The state's shapes on a mesh."""
  c = config()
  mesh = rules.make_mesh({"fsdp": fsdp, "data": devices // fsdp}, jax.devices()[:devices])
  tx = optimizer.make_optimizer(c.optimizer, c.schedule, c.steps)
  _, shapes, shardings = stage.abstract_state(c, serialize.build(stage.described_model(c)), tx, mesh)
  return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)


def saved(workdir):
  return sorted(int(p.name) for p in (workdir / "checkpoints").iterdir() if p.name.isdigit())


def spoil(workdir, step, how):
  """Does something to the largest file of a checkpoint; its name."""
  path = max((p for p in (workdir / "checkpoints" / str(step)).rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 1
  path.unlink() if how == "removed" else path.write_bytes(data if how == "flipped" else data[:-1])
  return path.name


def test_some_stay_for_good(trained):
  assert saved(trained) == [3, 5, 6]
  for step in saved(trained):
    directory = trained / "checkpoints" / str(step)
    assert manifest.problem(directory) is None and (directory / manifest.FILE_NAME).is_file()


@pytest.mark.parametrize("how,words", [("cut", "bytes, not"), ("flipped", "does not have its checksum"), ("removed", "is missing")])
def test_a_damaged_one_gives_way_to_the_one_before(how, words, workdir, capsys):
  name, keeper = spoil(workdir, 6, how), checkpoints.Checkpoints(workdir, 2)
  state, _ = keeper.restore(like())
  warning = capsys.readouterr().err
  assert warning.startswith("warning: checkpoint 6 is damaged") and warning.count("\n") == 1 and name in warning and words in warning
  assert "going on from 5" in warning and state.step == keeper.latest_step() == 5
  assert saved(workdir) == [3, 5] and [p.name.split("-")[0] for p in (workdir / "damaged").iterdir()] == ["6"]


def test_a_damaged_one_is_not_loaded(workdir):
  """What generates, or starts a next stage, reads parameters alone: their files alone must be whole."""
  of = lambda item: max((p for p in (workdir / "checkpoints/6" / item).rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
  of("optimizer").write_bytes(b"")
  before = load.load_pretrained(workdir)[1]
  data = bytearray(of("params").read_bytes())
  data[len(data) // 2] ^= 1
  of("params").write_bytes(data)
  with pytest.raises(ValueError, match="checkpoints/6 is damaged .*does not have its checksum.; remove it, and the checkpoint before it is used"):
    load.load_pretrained(workdir)
  shutil.rmtree(workdir / "checkpoints/6")
  after = load.load_pretrained(workdir)[1]
  assert jax.tree.structure(before) == jax.tree.structure(after)


def test_without_a_whole_one_nothing_is_touched(workdir):
  for step in (3, 5, 6):
    spoil(workdir, step, "cut")
  with pytest.raises(ValueError, match=r"no checkpoint of .* is whole \(6: .*bytes, not") as error:
    checkpoints.Checkpoints(workdir, 2).restore(like())
  assert "\n" not in str(error.value) and saved(workdir) == [3, 5, 6] and not (workdir / "damaged").exists()


def test_a_full_disk_leaves_what_is_whole(workdir, monkeypatch, capfd):
  keeper, write = checkpoints.Checkpoints(workdir, 1), manifest.write
  state, data_state = keeper.restore(like())

  def full(directory):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

  monkeypatch.setattr(manifest, "write", full)
  keeper.save(state._replace(step=state.step + 1), data_state)
  with pytest.raises(ValueError, match="no room on the disk of .* goes on from step 6") as error:
    keeper.wait()
  assert "\n" not in str(error.value) and "Traceback" not in capfd.readouterr().err and saved(workdir) == [3, 5, 6]
  assert len(list((workdir / "checkpoints").iterdir())) == 4  # and the half-written
  monkeypatch.setattr(manifest, "write", write)
  keeper = checkpoints.Checkpoints(workdir, 1)
  keeper.save(state._replace(step=state.step + 2), data_state)
  keeper.close()
  assert [p.name for p in (workdir / "checkpoints").iterdir()] == ["8"]


def test_a_checkpoint_moves_to_other_meshes(workdir):
  """From eight devices to one, from one to four."""
  found = []
  for devices, fsdp in ((8, 8), (1, 1), (4, 2)):
    state, data_state = checkpoints.Checkpoints(workdir, 1).restore(like(devices, fsdp))
    assert {len(x.sharding.device_set) for x in jax.tree.leaves(state)} == {devices}
    found.append((jax.device_get(state), data_state))
    workdir = workdir / str(devices)
    keeper = checkpoints.Checkpoints(workdir, 1)
    keeper.save(state, data_state)
    keeper.close()
  for state, data_state in found[1:]:
    assert jax.tree.all(jax.tree.map(np.array_equal, state, found[0][0])) and data_state == found[0][1]


def test_exports_by_step_and_at_the_end(workdir):
  assert sorted(p.name for p in (workdir / "export").iterdir()) == ["4", "6"]
  found, expected = bluelm_jax.load_pretrained(workdir / "export/6")[1], bluelm_jax.load_pretrained(workdir)[1]
  assert jax.tree.all(jax.tree.map(np.array_equal, found, expected))
  before = {p: p.stat().st_mtime_ns for p in (workdir / "export").rglob("*")}
  stage.run(config(), workdir)
  assert before == {p: p.stat().st_mtime_ns for p in (workdir / "export").rglob("*")}
  shutil.rmtree(workdir / "export/6")
  stage.run(config(), workdir)  # as after a kill between the last checkpoint and its export
  assert (workdir / "export/6/config.json").is_file()
