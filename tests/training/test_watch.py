"""What is seen inside a step: as computed by hand, on a mesh, over several batches, with frozen parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bluelm_jax.data.batch import PackedBatch
from bluelm_jax.models import presets
from bluelm_jax.models import serialize
from bluelm_jax.sharding import rules
from bluelm_jax.training import accumulate
from bluelm_jax.training import defaults
from bluelm_jax.training import losses
from bluelm_jax.training import metrics
from bluelm_jax.training import optimizer as optimizer_lib
from bluelm_jax.training import schedules
from bluelm_jax.training import stage
from bluelm_jax.training import watch
from tests.sharding import step as step_lib
from tests.training import faulty
from tests.training import test_accumulate


@pytest.fixture(autouse=True)
def preset(monkeypatch):
  monkeypatch.setattr(presets, "PRESETS", {**presets.PRESETS, "images": step_lib.model_config})
  faulty.add_preset()


def config(**changes):
  """Images on eight devices, the tower frozen but for its last norm, Muon with moments in bfloat16."""
  c = defaults.load(faulty.ROOT / "configs/stages/joint.py:miniature")
  c.preset, c.data.rows, c.data.length, c.data.tile_slots = "images", 8, 256, 4
  c.trainable, c.optimizer.name, c.optimizer.moment_dtype, c.watch.every, c.schedule.warmup = ("decoder/.*", "vision/final_norm/.*"), "muon", "bfloat16", 2, 0
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
  assert {p for p in moments["first_moment"]} == set(everything) and set(moments["second_moment"]) < set(everything)
  for kind, tree in moments.items():
    assert next(iter(tree.values())).dtype == jnp.bfloat16
    assert seen[f"{kind}_norm/all"] == pytest.approx(norm(tree, tree), rel=1e-3)
  rate = float(schedules.make(c.schedule, c.optimizer.learning_rate, c.steps)(1))
  assert seen["learning_rate/adam"] == pytest.approx(rate) and seen["learning_rate/adam/tables"] == pytest.approx(rate / 2)
  assert seen["learning_rate/muon"] == pytest.approx(rate * c.optimizer.muon_learning_rate / c.optimizer.learning_rate)
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
