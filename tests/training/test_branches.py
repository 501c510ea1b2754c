"""How stages follow each other: branches of a recipe, rates, and contexts that grow."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bluelm_jax.data import loader
from bluelm_jax.kernels.rotary import RopeScaling
from bluelm_jax.models import presets
from bluelm_jax.models import serialize
from bluelm_jax.training import accumulate
from bluelm_jax.training import checks
from bluelm_jax.training import defaults
from bluelm_jax.training import optimizer
from bluelm_jax.training import recipe
from bluelm_jax.training import record
from bluelm_jax.training import schedules
from bluelm_jax.training import stage
from tests.bench import machine

WHOLE = f"{machine.ROOT}/configs/recipes/miniature_whole.py"
TRUE = f"{machine.ROOT}/configs/recipes/bluelm_2_5_3b.py"


def by_name(config):
  return {name: (directory, stage_config) for name, directory, stage_config in recipe.stages(config, "W")}


def test_controls_start_where_the_recipe_says():
  found = by_name(defaults.load(WHOLE))
  start = {name: c.init_from for name, (_, c) in found.items()}
  assert start["teacher"] == start["scratch"] == "" and start["scratch_decay"] == found["scratch"][0]
  assert start["joint"] == start["joint_no_text"] == found["adapter"][0] and start["joint_longer"] == found["joint"][0]
  assert found["distil"][1].distill.teacher == found["teacher"][0] and found["scratch"][1].objective == "lm"
  tokens = lambda *names: sum(c.steps * c.data.rows * c.data.length for c in (found[n][1] for n in names))
  assert tokens("decay_short") == tokens("decay_1k", "decay_2k") and tokens("joint_longer") == tokens("reasoning")
  assert found["joint_longer"][1].steps == found["reasoning"][1].steps and found["joint_no_text"][1].steps == found["joint"][1].steps


@pytest.mark.parametrize("change,words", [
    ({"starts": {"nap": ""}}, "starts.nap names no stage of the order"),
    ({"starts": {"vision": "sft"}}, "starts.vision = 'sft' is no stage before it; use '' for random weights, or one of text"),
    ({"starts": {"sft": "sft"}}, "is no stage before it"),
    ({"starts": {"sft": "joint"}, "stages.sft.schedule.continues": True}, "sft is no stage of the line, or starts from none; set schedule.offset and horizon"),
    ({"starts": {"vision": "", "joint": "text"}, "stages.sft.schedule.continues": True}, "sft is no stage of the line"),
    ({"starts": {"vision": ""}, "stages.vision.init_from": "x"}, "in a recipe vision starts from random weights; empty it")])
def test_starts_that_cannot_be(change, words):
  config = defaults.load(f"{machine.ROOT}/configs/recipes/miniature.py")
  config.starts.update(change.pop("starts"))
  config.update_from_flattened_dict(change)
  with pytest.raises(ValueError, match=words):
    recipe.stages(config, "W")


def test_only_what_hangs_on_a_stage_is_stale(monkeypatch):
  """A stage to be trained anew stops those that came out of it, and no others."""
  found, done = recipe.stages(defaults.load(WHOLE), "W"), set()
  monkeypatch.setattr(record, "latest_step", lambda directory: 1 if directory.split("-", 1)[1] in done else None)
  monkeypatch.setattr(record, "check", lambda *_: None)
  done |= {name for name, _, _ in found} - {"joint_no_text", "decay_short", "scratch_decay", "sft"}
  recipe._check(found)
  for name in ("scratch", "joint", "teacher"):
    with pytest.raises(ValueError, match=f"started from an earlier run of {name}"):
      done.add("scratch_decay")
      done.discard(name)
      recipe._check(found)
    done.add(name)


def test_the_rate_of_the_true_recipe_falls_as_one():
  """One cosine through joint and reasoning, planned over 12 T tokens; then one line to zero that begins where they stop."""
  found = by_name(defaults.load(TRUE))
  rate = lambda name: (lambda c: schedules.make(c.schedule, c.optimizer.learning_rate, c.steps))(found[name][1])
  steps = {name: c.steps for name, (_, c) in found.items()}
  assert float(rate("joint")(steps["joint"])) == pytest.approx(float(rate("reasoning")(0)), rel=1e-6)
  assert float(rate("reasoning")(steps["reasoning"])) == pytest.approx(float(rate("decay_8k")(0)), rel=0.03)
  for before, after in (("decay_8k", "decay_16k"), ("decay_16k", "decay_32k")):
    assert float(rate(before)(steps[before])) == pytest.approx(float(rate(after)(0)), rel=1e-6)
  assert float(rate("decay_32k")(steps["decay_32k"])) == 0.0


@pytest.mark.parametrize("names,tokens", [(("teacher",), 6e12), (("distil",), 3e12), (("distil_decay",), 0.3e12), (("joint",), 4e12), (("reasoning",), 2.5e12), (("decay_8k", "decay_16k", "decay_32k"), 1.3e12)])
def test_the_true_stages_read_the_published_tokens(names, tokens):
  found, read = by_name(defaults.load(TRUE)), 0
  for _, c in (found[n] for n in names):
    knots = [*c.data.accumulate, (c.steps, 0)]
    read += c.data.rows * c.data.length * sum(count * (end - at) for (at, count), (end, _) in zip(knots, knots[1:]))
  assert read == pytest.approx(tokens, rel=1e-4)


@pytest.mark.parametrize("path", [WHOLE, TRUE])
def test_the_sources_of_a_recipe_are_in_order(path):
  for _, c in by_name(defaults.load(path)).values():
    loader.check(c.data.sources, c.objective)
    if c.evaluate.every:
      loader.check(c.evaluate.sources, c.objective)
      assert not {s.path for s in c.evaluate.sources.values()} & {s.path for s in c.data.sources.values()}


def test_the_true_recipe_is_looked_at():
  for name, (_, c) in by_name(defaults.load(TRUE)).items():
    assert c.objective == "prune" or 0 < c.watch.every <= c.evaluate.every <= c.steps / 5 and set(c.evaluate.sources) == set(c.data.sources), name


def test_the_true_recipe_fits_its_mesh():
  """All stages are for as many devices; rows divide over their groups, a group holds the largest image, shares move until the end."""
  for name, (_, c) in by_name(defaults.load(TRUE)).items():
    groups = c.mesh.data * c.mesh.fsdp
    assert groups * c.mesh.context * c.mesh.tensor == 256 and c.data.rows % groups == 0, name
    anyres = presets.PRESETS[c.preset]().anyres if c.data.tile_slots else None
    assert anyres is None or c.data.tile_slots >= anyres.max_rows * anyres.max_cols, name
    moving = [s.share for s in c.data.sources.values() if isinstance(s.share, tuple)]
    assert all(share[-1][0] == accumulate.total(c.data.accumulate, c.steps) for share in moving), name


@pytest.mark.parametrize("name,expected", [("layers/mlp/up", [0.25, 1.0]), ("lm_head", 1.0), ("embedding", 0.0625)])
def test_rates_fall_in_a_model_of_text_alone(name, expected):
  c = defaults.stage()
  defaults.fill(c.optimizer.lr_factors, all=dict(path=".*", factor=1.0, layer_decay=0.25))
  found = np.ravel(optimizer.lr_factor(c.optimizer, name, 3, 2))
  np.testing.assert_allclose(found, expected)


def test_a_context_grows_from_what_it_was_at_first():
  text = defaults.load(f"{machine.ROOT}/configs/stages/text.py")
  plain = stage.described_model(text).decoder
  text.yarn = 4.0
  grown = stage.described_model(text).decoder
  assert grown.rope_scaling == RopeScaling("yarn", 4.0, plain.context) and grown.context == 4 * plain.context
  assert dataclasses.replace(grown, context=plain.context, rope_scaling=None) == plain


def test_a_grown_context_is_kept(tmp_path):
  text = defaults.load(f"{machine.ROOT}/configs/stages/text.py")
  text.yarn = 4.0
  serialize.save(stage.described_model(text), tmp_path)
  text.init_from, text.yarn = str(tmp_path), 2.0
  with pytest.raises(ValueError, match="was stretched 4 times by YaRN, this stage's model 2 times; set yarn = 4, or more"):
    stage.run(text, tmp_path / "w")
  text.preset, text.yarn = "", 8.0  # of a checkpoint, too, it counts from before
  assert stage.described_model(text).decoder.context == 8 * presets.miniature().decoder.context
  llama = dataclasses.replace(presets.miniature().decoder, rope_scaling=RopeScaling("llama3", 2.0, 256))
  checks.positions(text, presets.miniature(), llama)
  serialize.save(llama, tmp_path)
  with pytest.raises(ValueError, match="RoPE is scaled by 'llama3'; set yarn = 1"):
    stage.described_model(text)


def test_rates_fall_towards_the_input():
  c = defaults.stage()
  c.schedule.update(kind="constant", warmup=0)
  c.optimizer.update(weight_decay=0.0, clip_norm=1e9)
  params = {
      "vision/patch": jnp.ones((3, 4)), "vision/layers/mlp/up": jnp.ones((3, 4, 4)), "vision/layers/mlp/up_bias": jnp.ones((3, 4)),
      "vision/final_norm/scale": jnp.ones(4), "adapter/up": jnp.ones((4, 4)), "decoder/layers/mlp/up": jnp.ones((2, 4, 4))}

  def moved():
    tx = optimizer.make_optimizer(c.optimizer, c.schedule, 10)
    return jax.jit(lambda grads: tx.update(grads, tx.init(params), params)[0])({p: 0.3 * v for p, v in params.items()})

  plain = moved()
  defaults.fill(c.optimizer.lr_factors, seen=dict(path="(vision|adapter)/.*", factor=0.5, layer_decay=0.8))
  found = {p: np.asarray(u / plain[p]) for p, u in moved().items()}
  fall = 0.5 * np.float32([0.64, 0.8, 1.0])
  np.testing.assert_allclose(found["vision/layers/mlp/up"], np.broadcast_to(fall[:, None, None], (3, 4, 4)), rtol=1e-5)
  np.testing.assert_allclose(found["vision/layers/mlp/up_bias"], np.broadcast_to(fall[:, None], (3, 4)), rtol=1e-5)
  for path, factor in (("vision/patch", 0.5 * 0.8**3), ("vision/final_norm/scale", 0.5), ("adapter/up", 0.5), ("decoder/layers/mlp/up", 1.0)):
    np.testing.assert_allclose(found[path], factor, rtol=1e-5)
