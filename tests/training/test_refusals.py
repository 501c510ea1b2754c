"""What a stage refuses before it writes anything."""

import re

import ml_collections
import pytest

from bluelm_jax.training import defaults
from bluelm_jax.training import recipe
from bluelm_jax.training import stage
from tests.bench import machine


def text():
  config = defaults.load(f"{machine.ROOT}/configs/stages/text.py:miniature")
  config.data.rows = 8  # one for each virtual device
  return config


@pytest.mark.parametrize("key,value,words", [
    ("keep", 0, "keep 0 must be at least 1"), ("keep_every", -1, "keep_every -1 must be at least 0"), ("export_every", -1, "export_every -1"),
    ("steps", 0, "steps 0"), ("seed", -1, "seed -1"), ("zero", 1, "zero 1 is not offered"),
    ("data.rows", 0, "raise data.rows"), ("data.tile_slots", -1, "raise data.rows, data.length or data.tile_slots"),
    ("optimizer.learning_rate", float("nan"), "must be positive"), ("optimizer.clip_norm", 0.0, "must be positive"),
    ("preset", "siglip2_so400m", "is a vision tower"), ("preset", "huge", "is unknown"), ("trainable", (), "trainable is empty"),
    ("trainable", ("(",), "is no regular expression"), ("trainable", ("vison/.*",), "matches no parameter"),
    ("objective", "image", "objective 'image' is unknown"), ("layout", "spiral", "layout 'spiral' is unknown"), ("trainable", (3,), "is no regular expression"),
    ("objective", "dense", "'prose' of kind 'documents' does not serve objective 'dense'"), ("execution.attention", "flash", "execution.attention 'flash' is unknown; use auto"),
    ("execution.remat", "all", "execution.remat 'all' is unknown; use none, full"), ("execution.context_parallel", "rings", "'rings' is unknown; use ring, all_gather"),
    ("optimizer.learning_rate", 1e300, "must be positive"), ("optimizer.muon_learning_rate", -1.0, "must be positive"), ("optimizer.eps", 0.0, "must be positive"),
    ("optimizer.b1", 2.0, "optimizer.b1 2.0 must be at least 0 and below 1"), ("optimizer.b2", float("nan"), "must be at least 0 and below 1"),
    ("optimizer.weight_decay", -1.0, "must be at least 0"), ("schedule.warmup", -5, "must be at least 0"), ("schedule.decay_share", 3.0, "must be from 0 to 1"),
    ("schedule.final", -1.0, "must be at least 0"), ("seed", 2**70, "below 2**62"), ("log_every", 2**70, "below 2**31"), ("name", "", "name is empty"),
    ("data.sources.prose.shar", 1, "unknown key 'shar'"),
    ("optimizer.moment_dtype", "float16", "optimizer.moment_dtype 'float16' is unknown; use bfloat16"), ("optimizer.decayed", ("vison/.*",), "optimizer.decayed pattern 'vison/.*' matches no parameter"),
    ("schedule.horizon", -1, "schedule.horizon -1 must be at least 0"), ("schedule.offset", -1, "schedule.offset -1 must be at least 0"),
    ("schedule.continues", True, "only a recipe counts the steps before"), ("schedule", dict(kind="multistep", final=0.0), "multistep would learn nothing"),
    ("evaluate.every", -1, "evaluate.every -1 must be at least 0"), ("evaluate.every", 5, "there are no evaluate.sources; name held-out shards"),
    ("evaluate.batches", 0, "evaluate.batches 0 must be at least 1"),
    ("evaluate.sources", dict(held=dict(kind="prose")), "data source 'held' has unknown kind 'prose'"),
    ("spikes.factor", 1.0, "spikes.factor 1.0 must be over 1, or 0"), ("spikes.patience", 0, "spikes.patience 0 must be at least 1"),
    ("watch.every", -1, "watch.every -1"),
    ("optimizer", dict(moment_dtype="bfloat16", b2=0.999), "round every decay of a moment away; lower them or use float32")])
def test_a_stage_refuses(key, value, words, tmp_path):
  config = text()
  *parents, leaf = key.split(".")
  node = config
  for parent in parents:
    node = node[parent]
  with node.unlocked():
    if isinstance(value, dict):
      node[leaf].update(value)
    else:
      node[leaf] = value
  with pytest.raises(ValueError, match=re.escape(words)):
    stage.run(config, tmp_path / "workdir")
  assert not (tmp_path / "workdir").exists()


def test_a_learning_rate_factor_must_match(tmp_path):
  config = text()
  defaults.fill(config.optimizer.lr_factors, vision=dict(path="vison/.*", factor=0.1))
  with pytest.raises(ValueError, match="optimizer.lr_factors pattern 'vison/.*' matches no parameter"):
    stage.run(config, tmp_path / "workdir")
  assert not (tmp_path / "workdir").exists()


@pytest.mark.parametrize("factor", [3, dict(path=".*"), dict(path=".*", factor="x"), dict(path=".*", factor=float("nan")), dict(path=".*", factor=1.0, by=2)])
def test_a_learning_rate_factor_is_a_path_and_a_number(factor, tmp_path):
  config = text()
  with config.unlocked():
    config.optimizer.lr_factors.mine = ml_collections.ConfigDict(factor) if isinstance(factor, dict) else factor
  with pytest.raises(ValueError, match="optimizer.lr_factors.mine must have a path and a factor"):
    stage.run(config, tmp_path / "workdir")


@pytest.mark.parametrize("key,value,words", [
    ("tile_slots", 0, "examples did not fit into 384 tokens and 0 tiles; raise data.length or data.tile_slots"),
    ("length", 16, "examples did not fit into 16 tokens"), ("rows", 8 * 10**9, "does not fit the memory; lower data.rows")])
def test_data_that_fit_no_batch_leave_nothing(key, value, words, tmp_path):
  config = defaults.load(f"{machine.ROOT}/configs/stages/adapter.py:miniature")
  config.data.rows, config.data.sources.screens.path = 8, "assets/screens-test.array_record"
  config.data[key] = value
  with pytest.raises(ValueError, match=words):
    stage.run(config, tmp_path / "workdir")
  assert not list(tmp_path.iterdir())


def test_a_config_is_whole(tmp_path):
  config = text()
  with config.unlocked():
    del config.optimizer["eps"]
  with pytest.raises(ValueError, match="the config has no optimizer.eps; begin it with defaults.stage"):
    stage.run(config, tmp_path / "workdir")
  with pytest.raises(ValueError, match="the config has no checkpoint_every"):
    stage.run(ml_collections.ConfigDict({"preset": "miniature"}), tmp_path / "workdir")
  with pytest.raises(ValueError, match="is no stage"):
    stage.run({"preset": "miniature"}, tmp_path / "workdir")


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_a_workdir_is_no_file(place, tmp_path):
  (tmp_path / "file").write_text("mine")
  with pytest.raises(ValueError, match="file is a file; choose another --workdir"):
    stage.run(text(), tmp_path / place)
  with pytest.raises(ValueError, match="file is a file; choose another --workdir"):
    recipe.run(defaults.load(f"{machine.ROOT}/configs/recipes/miniature.py"), tmp_path / place)


def test_recipes_and_stages_are_told_apart(tmp_path):
  whole = defaults.load(f"{machine.ROOT}/configs/recipes/miniature.py")
  with pytest.raises(ValueError, match="is no stage"):
    stage.run(whole, tmp_path / "workdir")
  with pytest.raises(ValueError, match="is no recipe"):
    recipe.stages(text(), tmp_path)
  for order in ((), ("text", "nap")):
    whole.order = order
    with pytest.raises(ValueError, match="must name stages"):
      recipe.stages(whole, tmp_path)


def test_what_a_recipe_names_must_be_there(tmp_path):
  whole = defaults.load(f"{machine.ROOT}/configs/recipes/miniature.py")
  whole.evaluation.before = "prose"
  with pytest.raises(ValueError, match="evaluation.before = 'prose' is no stage of the order; use text, vision"):
    recipe.run(whole, tmp_path)
  whole.evaluation = {}
  assert len(recipe.stages(whole, tmp_path)) == 5  # nothing to evaluate
  whole.stages.joint.init_from = "mine"
  with pytest.raises(ValueError, match="stages.joint.init_from is set, but in a recipe joint starts from adapter"):
    recipe.run(whole, tmp_path)
  whole.stages.joint.init_from, whole.stages.text.init_from = "", "mine"
  assert recipe.stages(whole, tmp_path)[0][2].init_from == "mine"  # the first stage may start from anything
  assert not list(tmp_path.iterdir())


def test_a_broken_loss_is_not_saved(tmp_path):
  """With a learning rate that breaks the weights, the run stops and no checkpoint of the broken state stands."""
  config = text()
  config.optimizer.name, config.optimizer.learning_rate, config.optimizer.clip_norm = "adamw", 1e30, 1e30
  config.steps, config.checkpoint_every, config.log_every, config.schedule.warmup = 6, 1, 6, 0
  config.data.length = 64
  with pytest.raises(ValueError, match="lower optimizer.learning_rate"):
    stage.run(config, tmp_path / "workdir")
  saved = [int(p.name) for p in (tmp_path / "workdir/checkpoints").glob("*") if p.name.isdigit()]
  assert saved and max(saved) < 3
