"""A stage that prunes, alone and in a recipe."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import optax
import pytest

import bluelm_jax
from bluelm_jax.compression import importance
from bluelm_jax.data.batch import PackedBatch
from bluelm_jax.data.tokenizer import ASSET
from bluelm_jax.data.tokenizer import Tokenizer
from bluelm_jax.inference import conversation
from bluelm_jax.inference.request import Options
from bluelm_jax.interop import load
from bluelm_jax.interop import mapping
from bluelm_jax.models import presets
from bluelm_jax.models import serialize
from bluelm_jax.models.config import DecoderConfig
from bluelm_jax.sharding import rules
from bluelm_jax.training import checkpoints
from bluelm_jax.training import defaults
from bluelm_jax.training import metrics
from bluelm_jax.training import optimizer as optimizer_lib
from bluelm_jax.training import pruning
from bluelm_jax.training import recipe
from bluelm_jax.training import stage
from bluelm_jax.training.precompile import compile as compile_lib
from tests.bench import machine
from tests.training.programs import programs  # noqa: F401  (for every test here)

TEACHER = DecoderConfig(vocab_size=1152, num_layers=2, embed_dim=32, num_heads=4, num_kv_heads=2, head_dim=8, mlp_dim=48, context=512)
DECODER = dataclasses.replace(TEACHER, num_layers=1, embed_dim=16, num_heads=2, num_kv_heads=1, mlp_dim=24, tie_embeddings=True)


def student():
  small = presets.miniature()
  vision = dataclasses.replace(small.vision, image_size=16, patch_size=4, embed_dim=16, mlp_dim=16)
  return dataclasses.replace(small, vision=vision, decoder=DECODER, anyres=dataclasses.replace(small.anyres, tile_size=16))


@pytest.fixture(autouse=True)
def preset(monkeypatch):
  monkeypatch.setitem(presets.PRESETS, "tiny", student)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
  directory = tmp_path_factory.mktemp("teacher") / "t"
  rng = np.random.default_rng(0)
  tensors = {p: mapping.in_memory((0.2 * rng.standard_normal(s) + ("scale" in p)).astype(np.float32)) for p, s in load.param_shapes(TEACHER).items()}
  load.save(directory, TEACHER, tensors, {"tokenizer.json": ASSET.read_bytes()})
  return directory


def config(teacher):
  c = defaults.load(f"{machine.ROOT}/configs/stages/prune.py:miniature")
  c.preset, c.init_from, c.steps, c.log_every, c.data.length = "tiny", str(teacher), 3, 1, 64
  return c


def files(workdir):
  return {p: p.stat().st_mtime_ns for p in workdir.rglob("*")}


def test_a_checkpoint_like_any_other(teacher, tmp_path, capsys):
  stage.run(config(teacher), tmp_path / "w")
  model, params = bluelm_jax.load_pretrained(tmp_path / "w")
  lineage = json.loads((tmp_path / "w" / pruning.LINEAGE).read_text())
  kept, before = lineage["kept"], bluelm_jax.load_pretrained(teacher)[1]
  assert model.config.decoder.embed_dim == 16 and lineage["teacher"]["path"] == str(teacher)
  assert serialize.from_dict(lineage["student"]["model"]) == student() and serialize.from_dict(lineage["teacher"]["model"]).embed_dim == 32
  np.testing.assert_array_equal(params["decoder"]["embedding"], before["embedding"][:, kept["width"]])
  up = before["layers"]["mlp"]["up"][kept["layers"][0]]
  np.testing.assert_array_equal(params["decoder"]["layers"]["mlp"]["up"][0], up[kept["width"]][:, kept["neurons"][0]])
  assert np.shape(lineage["scores"]["neurons"]) == (2, 48) and np.asarray(params["vision"]["patch"]).std() > 0
  lines = metrics.read(tmp_path / "w")
  assert [r["step"] for r in lines] == [1, 2, 3] and all(5 < r["loss"] < 30 for r in lines)
  speaker = conversation.Speaker(tmp_path / "w")
  assert isinstance("".join(piece.text for piece in speaker.reply("What?", [], Options(max_tokens=2))), str)

  written = files(tmp_path / "w")
  shutil.copytree(tmp_path / "w", tmp_path / "again")
  capsys.readouterr()
  stage.run(config(teacher), tmp_path / "w")
  assert "pruned before" in capsys.readouterr().err and files(tmp_path / "w") == written
  other = config(teacher)
  other.steps = 2
  with pytest.raises(ValueError, match="was trained with steps = 3, now it is 2"):
    stage.run(other, tmp_path / "w")
  assert files(tmp_path / "w") == written


def test_a_stage_of_a_recipe(teacher, tmp_path, capsys):
  """The first stage prunes, the second trains what came out of it."""
  text = defaults.load(f"{machine.ROOT}/configs/stages/text.py:miniature")
  text.preset, text.optimizer.name, text.steps, text.data.rows, text.data.length = "tiny", "adamw", 1, 8, 64
  text.optimizer.learning_rate = 1e-30  # so that the parameters are seen
  whole = type(text)({"order": ("prune", "text"), "stages": {"prune": config(teacher), "text": text}, "evaluation": {}})
  recipe.run(whole, tmp_path)
  first, second = (bluelm_jax.load_pretrained(tmp_path / d)[1] for d in ("1-prune", "2-text"))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), first, second)
  recipe.run(whole, tmp_path)
  assert capsys.readouterr().err.count("done before") == 2


def test_an_interrupted_run_begins_anew(teacher, tmp_path, monkeypatch):
  with monkeypatch.context() as patch:
    patch.setattr(checkpoints.Checkpoints, "save", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
      stage.run(config(teacher), tmp_path / "broken")
  with pytest.raises(ValueError, match="no finished checkpoint"):
    bluelm_jax.load_pretrained(tmp_path / "broken")
  for name in ("broken", "whole"):
    stage.run(config(teacher), tmp_path / name)
  a, b = (bluelm_jax.load_pretrained(tmp_path / name)[1] for name in ("broken", "whole"))
  assert jax.tree.all(jax.tree.map(np.array_equal, a, b))
  assert (tmp_path / "broken" / pruning.LINEAGE).read_bytes() == (tmp_path / "whole" / pruning.LINEAGE).read_bytes()


@pytest.mark.parametrize("change,words", [
    ({"preset": ""}, "pruning needs a preset, the student, and init_from"), ({"init_from": ""}, "pruning needs a preset"),
    ({"trainable": ("adapter/.*",)}, "trainable is set, but a stage that prunes trains nothing"), ({"optimizer.b1": 0.8}, "optimizer is set"),
    ({"schedule.warmup": 3}, "schedule is set"), ({"zero": 2}, "zero is set"), ({"preset": "small"}, "the teacher's head_dim is 8, the student's 64"),
    ({"data.length": 1024}, "exceeds the context"), ({"steps": 0}, "steps 0 must be at least 1"), ({"init_from": "/nowhere"}, "no checkpoint directory at /nowhere")])
def test_what_cannot_be_pruned_leaves_nothing(change, words, teacher, tmp_path):
  c = config(teacher)
  c.update_from_flattened_dict(change)
  with pytest.raises(ValueError, match=words) as error:
    stage.run(c, tmp_path / "w")
  assert "\n" not in str(error.value) and not (tmp_path / "w").exists()


def test_it_has_no_train_step(teacher):
  with pytest.raises(ValueError, match="the stage prune prunes and has no train step"):
    compile_lib.describe(config(teacher), jax.devices())


def test_the_7b_teacher_is_scored_at_true_size():
  """The pass over a batch traces, parameters and rows sharded, for the config as it stands."""
  c = defaults.load(f"{machine.ROOT}/configs/stages/prune.py:bluelm_2_5_3b")
  teacher = presets.bluelm_7b_teacher()
  mesh = rules.make_mesh({"fsdp": 4, "tensor": 2})
  spec, _ = stage.batch_shape(c, teacher, mesh, Tokenizer())
  _, shapes, shardings = stage.abstract_state(c, serialize.build(teacher), optax.identity(), mesh)
  place = lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s)
  params = optimizer_lib.merge({p: place(x, shardings.trainable[p]) for p, x in shapes.trainable.items()}, {})
  batch = compile_lib.abstract_batch(spec, rules.batch_sharding(mesh))
  assert isinstance(batch, PackedBatch)
  with jax.set_mesh(mesh):
    found, tokens_B, _ = jax.eval_shape(pruning.jit_scores(serialize.build(teacher), c.layout, mesh), params, batch)
  shapes = importance.Importance((65, 4096), (65, 4096), (32, 32), (32, 14336), (32,))
  assert tokens_B.shape == (256,) and all(x.shape == (256, *s) for x, s in zip(found, shapes))
