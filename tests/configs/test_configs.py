"""Every config: its dump is as committed, and its stage builds, shards and traces at true size.

UPDATE_GOLDEN=1 python -m pytest tests/configs   # after a change you meant
"""

import functools
import json
import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bluelm_jax.data.batch import PackedBatch
from bluelm_jax.data.tokenizer import Tokenizer
from bluelm_jax.models import presets
from bluelm_jax.models import serialize
from bluelm_jax.sharding import rules
from bluelm_jax.training import defaults
from bluelm_jax.training import optimizer as optimizer_lib
from bluelm_jax.training import recipe
from bluelm_jax.training import stage
from bluelm_jax.training import state

ROOT = pathlib.Path(__file__).parents[2]
GOLDEN = pathlib.Path(__file__).parent / "golden"
STAGES = [(p.stem, size) for p in sorted((ROOT / "configs/stages").glob("*.py")) for size in ("miniature", "small")]
RECIPES = [p.stem for p in sorted((ROOT / "configs/recipes").glob("*.py"))]


def check(name, values):
  path = GOLDEN / f"{name}.json"
  text = json.dumps(values, indent=1, sort_keys=True) + "\n"
  if os.environ.get("UPDATE_GOLDEN"):
    path.write_text(text)
  assert path.is_file() and path.read_text() == text, f"{path.name} differs; if that is meant, run with UPDATE_GOLDEN=1"


@pytest.mark.parametrize("name,size", STAGES)
def test_stage_golden(name, size):
  check(f"stage-{name}-{size}", defaults.load(f"{ROOT}/configs/stages/{name}.py:{size}").to_dict())


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_golden(name, monkeypatch):
  monkeypatch.chdir(ROOT)
  config = defaults.load(f"configs/recipes/{name}.py")
  stages = [{"name": n, "directory": d, "config": c.to_dict()} for n, d, c in recipe.stages(config, "W")]
  check(f"recipe-{name}", {"evaluation": config.evaluation.to_dict(), "stages": stages})


@pytest.mark.parametrize("name", sorted(presets.PRESETS))
def test_preset_golden(name):
  check(f"preset-{name}", serialize.to_dict(presets.PRESETS[name]()))


@pytest.mark.parametrize("name", sorted(presets.PRESETS))
def test_model_json_round_trip(name, tmp_path):
  config = presets.PRESETS[name]()
  serialize.save(config, tmp_path)
  assert serialize.load(tmp_path) == config


@pytest.mark.parametrize("name,size", STAGES)
def test_stage_lowers_at_true_size(name, size):
  """Parameters get a sharding on 8 devices, and the train step traces at the batch's real shape."""
  config = defaults.load(f"{ROOT}/configs/stages/{name}.py:{size}")
  model = serialize.build(presets.PRESETS[config.preset]())
  # Three vision heads of the miniature do not split over two tensor ranks.
  mesh = rules.make_mesh({"fsdp": 4} if size == "miniature" else {"fsdp": 2, "tensor": 2}, jax.devices()[:4])
  spec, _ = stage.batch_shape(config, model.config, mesh, Tokenizer())
  init = functools.partial(model.init, method="init_all")
  boxed = jax.eval_shape(init, jax.random.key(0), jnp.zeros((1, 8), jnp.int32))["params"]
  assert all(s.mesh == mesh for s in jax.tree.leaves(rules.param_shardings(mesh, boxed)))
  tx = optimizer_lib.make_optimizer(config.optimizer, config.schedule, config.steps)
  flat = {p: jax.ShapeDtypeStruct(v.shape, v.dtype) for p, v in optimizer_lib.paths(jax.eval_shape(lambda: _unbox(init))).items()}
  chosen = set(optimizer_lib.split_trainable(optimizer_lib.merge(flat, {}), config.trainable)[0])
  trainable, frozen = ({p: v for p, v in flat.items() if (p in chosen) == wanted} for wanted in (True, False))
  before = state.TrainState(jax.ShapeDtypeStruct((), jnp.int32), trainable, frozen, jax.eval_shape(tx.init, trainable))
  rows = jax.ShapeDtypeStruct((spec.rows, spec.length), jnp.int32)
  tiles = jax.ShapeDtypeStruct((spec.groups, spec.tile_slots, spec.tile_size, spec.tile_size, 3), jnp.uint8)
  places = jax.ShapeDtypeStruct((spec.groups, spec.tile_slots), jnp.int32)
  batch = PackedBatch(rows, rows, jax.ShapeDtypeStruct(rows.shape, jnp.float32), rows, rows, tiles, rows, places)
  after, metrics = jax.eval_shape(state.make_train_step(model, tx, config.objective), before, batch)
  assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(lambda x: (x.shape, x.dtype), before)
  assert metrics["loss"].shape == ()


def _unbox(init):
  import flax.linen as nn

  return nn.meta.unbox(init(jax.random.key(0), jnp.zeros((1, 8), jnp.int32))["params"])


def test_stages_stay_small():
  """Under 80 keys in any stage."""
  for name, size in STAGES:
    config = defaults.load(f"{ROOT}/configs/stages/{name}.py:{size}")
    leaves = jax.tree.leaves(config.to_dict(), is_leaf=lambda v: not isinstance(v, dict))
    assert len(leaves) < 80


def test_recipe_chains_its_stages():
  config = defaults.load(f"{ROOT}/configs/recipes/miniature.py")
  found = recipe.stages(config, "W")
  assert [n for n, _, _ in found] == ["text", "vision", "adapter", "joint", "sft"]
  assert [c.init_from for _, _, c in found] == ["", *[d for _, d, _ in found[:-1]]]
  assert not config.stages.joint.init_from  # the caller's config is left alone


def test_packed_batch_is_the_only_input():
  """A dense batch of a stage has the shapes the trainer was traced with."""
  config = defaults.load(f"{ROOT}/configs/stages/vision.py:miniature")
  mesh = rules.make_mesh({"data": 1}, jax.devices()[:1])
  spec, chat = stage.batch_shape(config, presets.miniature(), mesh, Tokenizer())
  from bluelm_jax.data import loader

  batch = next(loader.batches(config.data.sources, chat, spec, 0))
  assert batch.tokens.shape == (spec.rows, spec.length) and batch.tiles.shape[1] == spec.tile_slots
  assert np.isin(batch.loss_weights, np.float32([0, 0.3, 1])).all() and batch.loss_weights.sum() > 0
