"""What is seen inside a step: as computed by hand, on a mesh, over several batches, with frozen parameters."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bluelm_jax.data.batch import PackedBatch
from bluelm_jax.models import presets
from bluelm_jax.models import serialize
from bluelm_jax.sharding import rules
from bluelm_jax.training import defaults
from bluelm_jax.training import losses
from bluelm_jax.training import metrics
from bluelm_jax.training import optimizer as optimizer_lib
from bluelm_jax.training import schedules
from bluelm_jax.training import stage
from bluelm_jax.training import watch
from bluelm_jax.training.precompile import compile as compile_lib
from tests.sharding import step as step_lib
from tests.training import faulty
from tests.training import test_accumulate


@pytest.fixture(autouse=True)
def preset(monkeypatch):
  monkeypatch.setattr(presets, "PRESETS", {**presets.PRESETS, "images": step_lib.model_config})
  faulty.add_preset()


def config(**changes):
  """Images on eight devices, the tower frozen but for its last norm, moments in bfloat16."""
  c = defaults.load(faulty.ROOT / "configs/stages/joint.py:miniature")
  c.preset, c.data.rows, c.data.length, c.data.tile_slots = "images", 8, 256, 4
  c.trainable, c.optimizer.name, c.optimizer.moment_dtype, c.watch.every, c.schedule.warmup = ("decoder/.*", "vision/final_norm/.*"), "adamw", "bfloat16", 2, 0
  defaults.fill(c.optimizer.lr_factors, tables=dict(path=".*embedding", factor=0.5))
  c.update_from_flattened_dict(changes)
  return c


def norm(tree, paths):
  return np.sqrt(sum(np.sum(np.asarray(tree[p], np.float64) ** 2) for p in paths))


def test_a_step_shows_what_it_does():
  c = config()
  mesh = rules.make_mesh({"fsdp": 4, "tensor": 2})
  model, tx, state, shardings, batches = test_accumulate.prepare(c, mesh, 2)
  put = lambda i: stage.put_batch(PackedBatch(*batches[i]), rules.batch_sharding(mesh))
  before = jax.device_get(state)
  with jax.set_mesh(mesh):
    step = stage.jit_step(c, model, tx, shardings)
    state, unseen = step(state, put(0))
    assert not any(np.asarray(x).any() for x in jax.tree.leaves(unseen["watch"]))
    middle = jax.device_get(state)
    state, seen = step(state, put(1))
    after, seen, grad_norm = jax.device_get(state), jax.device_get(seen["watch"]), float(seen["grad_norm"])
  of = lambda *starts: [p for p in before.trainable if p.startswith(starts)]
  attention, norms, everything = of("decoder/layers/attention/"), [p for p in before.trainable if "_norm/" in p], of("")
  updates = {p: np.asarray(after.trainable[p], np.float64) - middle.trainable[p] for p in everything}
  for name, members in (("attention", attention), ("norms", norms), ("all", everything), ("vision", of("vision/"))):
    assert members
    assert seen[f"param_norm/{name}"] == pytest.approx(norm(middle.trainable, members), rel=1e-5)
    assert seen[f"update_norm/{name}"] == pytest.approx(norm(updates, members), rel=1e-3)
    assert seen[f"update_ratio/{name}"] == pytest.approx(norm(updates, members) / norm(middle.trainable, members), rel=1e-3)
  assert seen["gradient_norm/all"] == pytest.approx(grad_norm, rel=1e-5) and "param_norm/adapter" not in seen
  parts = [seen[f"gradient_norm/{name}"] for name in ("vision", "decoder")]
  assert np.linalg.norm(parts) == pytest.approx(grad_norm, rel=1e-5) and min(parts) > 0
  moments = watch._moments(after.opt_state, after.trainable)
  assert set(moments["first_moment"]) == set(moments["second_moment"]) == set(everything)
  for kind, tree in moments.items():
    assert next(iter(tree.values())).dtype == jnp.bfloat16
    assert seen[f"{kind}_norm/all"] == pytest.approx(norm(tree, tree), rel=1e-3)
  rate = float(schedules.make(c.schedule, c.optimizer.learning_rate, c.steps)(1))
  assert seen["learning_rate/adam"] == pytest.approx(rate) and seen["learning_rate/adam/tables"] == pytest.approx(rate / 2)
  # The last layer's output, whose norm the model's own function gives.
  layers = model.config.decoder.num_layers
  assert seen["activation_rms/decoder"].shape == seen["activation_max/decoder"].shape == (layers,) and seen["activation_rms/vision"].min() > 0
  batch = batches[1]
  taps = watch.Taps(model, jnp.bool_(True), batch.segment_ids > 0)
  losses.token_losses(taps, optimizer_lib.merge(middle.trainable, middle.frozen), jax.tree.map(jnp.asarray, batch))
  alone = taps.found["decoder"]
  np.testing.assert_allclose(seen["activation_rms/decoder"], np.sqrt(alone["squares"] / alone["count"]), rtol=1e-4)
  np.testing.assert_allclose(seen["activation_max/decoder"], alone["largest"], rtol=1e-4)
  assert alone["count"][0] == (batch.segment_ids > 0).sum() * model.config.decoder.embed_dim


@pytest.mark.parametrize("name", ["muon", "moonlight"])
def test_muon_has_one_moment_and_its_own_rate(name):
  c = config(**{"optimizer.name": name, "schedule.kind": "constant"})
  matrices, rest = {"decoder/layers/mlp/up": jnp.ones((1, 4, 6))}, {"decoder/embedding": jnp.ones((6, 4)), "decoder/final_norm/scale": jnp.ones(4)}
  tx = optimizer_lib.make_optimizer(c.optimizer, c.schedule, c.steps)
  moments = watch._moments(tx.init(matrices | rest), matrices | rest)
  assert set(moments["first_moment"]) == set(matrices | rest) and set(moments["second_moment"]) == set(rest)
  rates = {k: float(rate(5)) for k, rate in watch.watcher(c, matrices | rest).rates.items()}
  o = c.optimizer
  matrix_rate = o.muon_learning_rate if name == "muon" else o.learning_rate
  assert rates == pytest.approx({"muon": matrix_rate, "adam": o.learning_rate, "adam/tables": o.learning_rate / 2})


def test_the_log_has_what_was_seen(tmp_path, monkeypatch):
  """Steps of two batches, of which every second is watched; groups of a user's own, and layers of a text model."""
  c = faulty.config()
  c.data.rows, c.steps, c.log_every, c.checkpoint_every, c.data.accumulate, c.watch.every = 8, 5, 3, 100, ((0, 2),), 2
  defaults.fill(c.watch.groups, queries=".*/(q|k)", rest=(".*/v", ".*/o"))
  drawn = []
  monkeypatch.setattr(metrics.tensorboardX.SummaryWriter, "add_scalar", lambda self, key, value, step: drawn.append((key, step)))
  stage.run(c, tmp_path)
  first, second = metrics.read(tmp_path)
  assert [r["watch/step"] for r in (first, second)] == [2, 4]
  names = {k.split("/", 1)[1] for k in first if k.startswith("watch/")}
  kinds = [f"{kind}_norm" for kind in ("param", "gradient", "update", "first_moment", "second_moment")]
  expected = {f"{kind}/{name}" for kind in (*kinds, "update_ratio") for name in ("queries", "rest")}
  assert names == expected | {"step", "learning_rate/adam", "activation_rms/decoder/00", "activation_max/decoder/00"}
  assert [step for key, step in drawn if key == "watch/param_norm/queries"] == [2, 4]


def test_activations_of_batches_are_joined():
  parts = [{"decoder": {"squares": jnp.array([s]), "count": jnp.array([2.0]), "largest": jnp.array([m])}} for s, m in ((1.0, 5.0), (3.0, 4.0))]
  assert jax.device_get(watch.join(*parts)) == {"decoder": {"squares": [4.0], "count": [4.0], "largest": [5.0]}}


def test_what_is_not_watched_is_not_in_the_program():
  found = {}
  for every in (0, 2):
    c = faulty.config()
    c.data.rows, c.watch.every = 8, every
    d = compile_lib.describe(c, jax.devices())
    with jax.set_mesh(d.mesh):
      found[every] = "stablehlo.case" in d.step.lower(*d.arguments).as_text()
  assert found == {0: False, 2: True}


@pytest.mark.parametrize("changes,words", [
    ({"mine": ".*/nothing"}, "watch.groups.mine pattern '.*/nothing' matches no parameter"), ({"mine": (".*", "(")}, "watch.groups.mine pattern '(' is no regular"),
    ({"mine": 3}, "watch.groups.mine = 3 must be a regular expression or several"), ({"mine": ()}, "watch.groups.mine is empty")])
def test_groups_that_are_none_are_refused(changes, words, tmp_path):
  c = faulty.config()
  c.data.rows = 8
  defaults.fill(c.watch.groups, **changes)
  with pytest.raises(ValueError, match=re.escape(words)):
    stage.run(c, tmp_path / "w")
  assert not (tmp_path / "w").exists()
