"""Every config: its dump is as committed, and its stage builds, shards and traces at true size.

UPDATE_GOLDEN=1 python -m pytest tests/configs   # after a change you meant
"""

import json
import math
import os
import pathlib
import re

import flax.linen as nn
import jax
import numpy as np
import pytest

from bluelm_jax.data.tokenizer import Tokenizer
from bluelm_jax.interop import load
from bluelm_jax.models import presets
from bluelm_jax.models import serialize
from bluelm_jax.sharding import rules
from bluelm_jax.training import defaults
from bluelm_jax.training import recipe
from bluelm_jax.training import record
from bluelm_jax.training import stage
from bluelm_jax.training import teaching
from bluelm_jax.training.precompile import compile as compile_lib
from bluelm_jax.training.precompile import topology

ROOT = pathlib.Path(__file__).parents[2]
GOLDEN = pathlib.Path(__file__).parent / "golden"
STAGES = [(p.stem, size) for p in sorted((ROOT / "configs/stages").glob("*.py")) for size in defaults.module(p).SIZES]
LAYOUTS = [(p.stem, layout) for p in sorted((ROOT / "configs/layouts").glob("*.py")) for layout in defaults.module(p).LAYOUTS]
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


def trace(config, devices, lower=False):
  """The train step traces at the batch's real shape, parameters sharded; what it carries comes out as it went in."""
  d = compile_lib.describe(config, devices)
  assert len({x.sharding.mesh for x in jax.tree.leaves(d.state)}) == 1
  with jax.set_mesh(d.mesh):
    traced = d.step.trace(*d.arguments)
    if lower:
      traced.lower()
  shapes = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)
  if d.sums is not None:
    assert shapes(traced.out_info) == shapes(d.sums)
    with jax.set_mesh(d.mesh):
      after, sums, metrics = d.update.trace(d.state, d.sums).out_info
    assert shapes(sums) == shapes(d.sums)
  else:
    after, metrics = traced.out_info
  assert shapes(after) == shapes(d.state) and metrics["loss"].shape == ()
  assert any(name.startswith("gradient_norm/") for name in metrics.get("watch", ())) == bool(config.watch.every)


@pytest.mark.parametrize("name,size", [s for s in STAGES if s[0] not in ("prune", "teach")])
def test_stage_lowers_at_true_size(name, size, tmp_path):
  config = defaults.load(f"{ROOT}/configs/stages/{name}.py:{size}")
  # Three vision heads of the miniature do not split over two tensor ranks.
  mesh = {"fsdp": min(4, config.data.rows)} if size.startswith("miniature") else {"fsdp": 2, "tensor": 2}
  if config.mesh.context > 1:  # laid out for a cluster; of its ranks four are here
    mesh = {"fsdp": 2, "context": 2}
  config.mesh.update({"data": 1, "fsdp": 1, "context": 1, **mesh})
  if config.objective == "distill":  # a description is all that is read of a teacher
    serialize.save(presets.PRESETS[defaults.load(f"{ROOT}/configs/stages/teacher.py:{size}").preset](), tmp_path)
    config.distill.teacher = str(tmp_path)
  trace(config, jax.devices()[: math.prod(mesh.values())], lower=size.startswith("bluelm"))  # the others run, in other tests and in recipes


@pytest.mark.parametrize("size", ["miniature", "bluelm_2_5_3b"])
def test_teaching_lowers_at_true_size(size):
  config = defaults.load(f"{ROOT}/configs/stages/teach.py:{size}")
  config.mesh.update({"data": 1, "fsdp": 4} if size == "miniature" else {"data": 1, "fsdp": 2, "tensor": 2})  # three KV heads
  teacher = presets.PRESETS[defaults.load(f"{ROOT}/configs/stages/teacher.py:{size}").preset]()
  mesh = rules.make_mesh(config.mesh.to_dict(), jax.devices()[:4])
  spec, _ = stage.batch_shape(config, teacher, mesh, Tokenizer())
  boxed = load.abstract_params(teacher)
  params = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), nn.meta.unbox(boxed), rules.param_shardings(mesh, boxed))
  batch = compile_lib.abstract_batch(spec, rules.batch_sharding(mesh))
  with jax.set_mesh(mesh):
    top = teaching.jit_top(config, teacher, mesh).trace(params, batch)
  assert top.out_info[0].ids.shape == (spec.rows, spec.length, config.distill.top_k)
  top.lower()


@pytest.mark.parametrize("name,layout", LAYOUTS)
def test_layout_golden(name, layout):
  check(f"layout-{name}-{layout}", defaults.load(f"{ROOT}/configs/layouts/{name}.py:{layout}").to_dict())


@pytest.mark.parametrize("name,layout", LAYOUTS)
def test_a_layout_trains_as_its_stage_does(name, layout):
  """All but where things lie: as many rows an update, shares that change at the same rows, as many tiles a row."""
  stage_of = {"joint_4k": "joint.py:bluelm_2_5_3b", "long_32k": "decay.py:bluelm_2_5_3b_32k"}[name]
  found, expected = (defaults.load(f"{ROOT}/configs/{path}") for path in (f"layouts/{name}.py:{layout}", f"stages/{stage_of}"))
  in_rows = lambda c, knots: [(batch * c.data.rows, value) for batch, value in knots]
  of_rows = lambda c: (
      [(step, count * c.data.rows) for step, count in c.data.accumulate], c.evaluate.batches * c.data.rows,
      c.data.tile_slots * c.mesh.data * c.mesh.fsdp / c.data.rows,
      {n: s.share if isinstance(s.share, float) else in_rows(c, s.share) for n, s in c.data.sources.items()})
  assert of_rows(found) == of_rows(expected)
  laid_out = ("name", "mesh.", "execution.remat", "data.rows", "data.tile_slots", "data.accumulate", "evaluate.batches")
  rest = lambda c: {k: v for k, v in record.flat(c.to_dict()).items() if not k.startswith(laid_out) and not re.fullmatch(r"data\.sources\..*\.share", k)}
  assert rest(found) == rest(expected) and found.watch.every


def test_rows_that_make_no_whole_batches_are_refused():
  config = defaults.load(f"{ROOT}/configs/stages/joint.py:bluelm_2_5_3b")
  with pytest.raises(ValueError, match="data.rows 384 does not divide the 512 rows of a batch times data.accumulate"):
    defaults.regroup(config, 384)


@pytest.mark.parametrize("name,layout", LAYOUTS)
def test_layout_traces_at_true_size(name, layout):
  path = f"{ROOT}/configs/layouts/{name}.py"
  try:
    devices = topology.devices(defaults.module(path).LAYOUTS[layout]["topology"])
  except ValueError as missing:
    pytest.skip(str(missing))
  trace(defaults.load(f"{path}:{layout}"), devices)


def test_stages_stay_small():
  """Under 80 keys in any stage; a source or a factor is an entry of a list, and counts as one."""
  for name, size in STAGES:
    config = defaults.load(f"{ROOT}/configs/stages/{name}.py:{size}").to_dict()
    entries = [v for part in (config["data"]["sources"], config["optimizer"]["lr_factors"], config["evaluate"]["sources"]) for v in part.values()]
    assert len(jax.tree.leaves(config, is_leaf=lambda v: not isinstance(v, dict) or v in entries)) < 80


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
  assert np.isin(batch.loss_weights, np.float32([0, 0.3, 1, 2])).all() and batch.loss_weights.sum() > 0
