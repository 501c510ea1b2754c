"""A teacher's words of rows with images: written and read by two processes and by one, whose rows context ranks share or not."""

import jax
import numpy as np
import pytest

from bluelm_jax.models import presets
from bluelm_jax.sharding import rules
from bluelm_jax.training import metrics
from bluelm_jax.training import stage
from bluelm_jax.training import store
from tests.training import several
from tests.training import taught
from tests.training.programs import programs  # noqa: F401  (for every test here)
from tests.training.test_store import contents

SHARED = {"mesh.fsdp": 2, "mesh.context": 2}  # two devices to a process: each holds the rows of one group


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """both: written by two processes, and at once read by them; one: by a process, without context ranks."""
  folder = tmp_path_factory.mktemp("taught")
  taught.save_teacher(folder / "teacher")
  teach, follow = {"distill.teacher": str(folder / "teacher")}, {"distill.stored": str(folder / "both")}
  running = several.launch(
      {"workdir": folder / "both", **teach, **SHARED}, {"workdir": folder / "both-student", **follow, **SHARED}, module="tests.training.taught")
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(presets, "PRESETS", dict(presets.PRESETS))
    patch.setattr(rules, "make_mesh", lambda shape, make=rules.make_mesh: make(shape, jax.devices()[:2]))
    taught.add_preset()
    stage.run(taught.config(**teach, **{"mesh.fsdp": 2}), folder / "one")
    several.finish(running)
    for name in ("both", "one"):
      stage.run(taught.config(**{"distill.stored": str(folder / name), "mesh.fsdp": 2}), folder / f"{name}-student-alone")
  return folder


def test_two_processes_store_what_one_does(folder):
  assert [(a, b, len(files)) for a, b, files in store.pieces(folder / "both")] == [(0, taught.BATCHES, 2)]
  for path in (folder / "both" / "top_k").iterdir():  # of a row's two context ranks one writes
    with np.load(path) as f:
      assert f["batch"].tolist() == [0, 0, 1, 1]
  found, expected = contents(folder / "both"), contents(folder / "one")
  assert found.keys() == expected.keys() and len(found) == 4 * taught.BATCHES
  for key, (log_probs, ids) in expected.items():
    np.testing.assert_allclose(np.float32(found[key][0]), np.float32(log_probs), atol=5e-3)
    assert (found[key][1] == ids).mean() > 0.99  # of two alike either may come first


def test_a_student_follows_two_processes_words_as_one_process_and_as_two(folder):
  lines = lambda name: [[r[k] for k in ("loss_tokens", "loss", "loss_parts/divergence", "loss_parts/cross_entropy")] for r in metrics.read(folder / name)]
  expected = lines("one-student-alone")
  assert len(expected) == taught.BATCHES and expected[0][2] > 0.05
  for name in ("both-student", "both-student-alone"):
    np.testing.assert_allclose(lines(name), expected, rtol=1e-3)


def test_the_words_are_of_what_the_images_show(folder):
  """Some rows hold images, and with other pixels such a row is another."""
  config = taught.config(**{"distill.teacher": "-"})
  mesh = rules.make_mesh({"fsdp": 2}, jax.devices()[:2])
  spec, chat = stage.batch_shape(config, taught.student(), mesh, taught.step.Tokenizer())
  batch = next(taught.step.loader.batches(config.data.sources, chat, spec, config.seed))
  stored = {checksum for number, checksum in contents(folder / "both") if number == 0}
  seen = [(x >= 0).any() for x in batch.vision_index]
  of = lambda b: [store.checksum(b, row, spec.tokens_per_tile) for row in range(spec.rows)]
  assert any(seen) and set(of(batch)) == stored
  assert [a != b for a, b in zip(of(batch), of(batch._replace(tiles=255 - batch.tiles)))] == seen


def test_a_part_without_rows_is_read(folder, tmp_path):
  """Where context ranks of several processes share all rows, the first process holds them."""
  rows = [store.Row(number, checksum, *words) for (number, checksum), words in contents(folder / "one").items()]
  for part in range(2):
    store.save(tmp_path, 0, taught.BATCHES, rows if part == 0 else [], part, 2, {"data": {}, "groups": 2})
  assert contents(tmp_path).keys() == contents(folder / "one").keys()
  assert store.stop(tmp_path) == taught.BATCHES
