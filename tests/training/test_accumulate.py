"""Several batches to a step: equal to one large batch, under a ramp, through a break, and foreseen in the memory."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from bluelm_jax.data import loader
from bluelm_jax.data.tokenizer import Tokenizer
from bluelm_jax.interop import load
from bluelm_jax.models import presets
from bluelm_jax.models import serialize
from bluelm_jax.models.config import DecoderConfig
from bluelm_jax.sharding import rules
from bluelm_jax.training import accumulate
from bluelm_jax.training import defaults
from bluelm_jax.training import loop
from bluelm_jax.training import memory
from bluelm_jax.training import metrics
from bluelm_jax.training import optimizer as optimizer_lib
from bluelm_jax.training import record
from bluelm_jax.training import stage
from bluelm_jax.training import state as state_lib
from bluelm_jax.training import watch
from bluelm_jax.training.precompile import compile as compile_lib
from tests.bench import machine
from tests.sharding import step
from tests.training.programs import programs  # noqa: F401  (for every test here)

MODEL = DecoderConfig(vocab_size=1152, num_layers=2, embed_dim=32, num_heads=2, num_kv_heads=2, head_dim=16, mlp_dim=48)


@pytest.fixture(autouse=True)
def preset(monkeypatch):
  monkeypatch.setitem(presets.PRESETS, "tiny", lambda: MODEL)
  monkeypatch.setitem(presets.PRESETS, "images", step.model_config)


def config(name="text", **changes):
  c = defaults.load(f"{machine.ROOT}/configs/stages/{name}.py:miniature")
  c.optimizer.name, c.data.rows, c.data.length = "adamw", 8, 64
  c.preset = "tiny"
  c.update_from_flattened_dict(changes)
  return c


def prepare(c, mesh, count):
  """(model, optimizer, state, its shardings, unequal batches) of a stage."""
  model_config = stage.described_model(c)
  model, tx = serialize.build(model_config), optimizer_lib.make_optimizer(c.optimizer, c.schedule, c.steps)
  spec, chat = stage.batch_shape(c, model_config, mesh, Tokenizer())
  source = loader.batches(c.data.sources, chat, spec, 0)
  batches = [next(source) for _ in range(count)]
  # The first counts a tenth of its tokens.
  batches[0] = batches[0]._replace(loss_weights=batches[0].loss_weights * (np.arange(spec.length) % 10 == 0).astype(np.float32))
  create, _, shardings = stage.abstract_state(c, model, tx, mesh)
  return model, tx, jax.jit(create, out_shardings=shardings)(jax.random.key(0)), shardings, batches


def accumulated(c, mesh, model, tx, state, shardings, batches):
  programs = accumulate.programs(c, model, tx, shardings, stage.gradient_shardings(c, model, tx, mesh))
  with jax.set_mesh(mesh):
    sums = programs.start(state, batches[0])
    for batch in batches:
      sums = programs.add(state, sums, stage.put_batch(batch, rules.batch_sharding(mesh)))
    return programs.apply(state, sums)


def test_several_batches_equal_one_that_holds_their_rows():
  """Images too; in loss, counts, gradient and what is watched. The first batch counts few tokens, so a mean of means would be another thing."""
  c = config("joint", **{"preset": "images", "data.rows": 4, "data.length": 256, "data.tile_slots": 8, "watch.every": 1})
  mesh = rules.make_mesh({"data": 1}, jax.devices()[:1])
  model, tx, state, shardings, batches = prepare(c, mesh, 3)
  counts = [b.loss_weights.sum() for b in batches]
  assert counts[0] < 0.5 * min(counts[1:]) and sum(b.vision_index.max() > 0 for b in batches) > 1
  whole = jax.tree.map(lambda *parts: np.concatenate(parts), *batches)
  with jax.set_mesh(mesh):
    watcher = watch.watcher(c, state.trainable)
    expected, large = jax.jit(state_lib.make_train_step(model, tx, len(c.data.sources), watcher=watcher))(state, whole)
  found, _, metrics_found = accumulated(c, mesh, model, tx, state, shardings, batches)
  watched, watched_found = large.pop("watch"), metrics_found["watch"]
  for key in watched:
    if key.startswith(("activation", "param", "gradient")):  # an update of what has no gradient follows its rounding
      np.testing.assert_allclose(watched_found[key], watched[key], rtol=1e-3, err_msg=key)
  for key in large:
    np.testing.assert_allclose(metrics_found[key], large[key], rtol=1e-4, err_msg=key)
  assert int(found.step) == int(expected.step) == 1
  gradient = lambda s: optax.tree.get(s.opt_state, "mu")  # of Adam after one step: a tenth of it
  largest = max(float(jnp.abs(x).max()) for x in gradient(expected).values())
  for p, x in gradient(expected).items():  # of a bias of keys it is zero but for rounding
    np.testing.assert_allclose(gradient(found)[p], x, rtol=1e-3, atol=2e-3 * float(jnp.abs(x).max()) + 1e-7 * largest, err_msg=p)


@pytest.mark.parametrize("zero", [2, 3])
def test_sums_lie_in_pieces(zero):
  c = config(zero=zero)
  mesh = rules.make_mesh({"fsdp": 8})
  model, tx, state, shardings, batches = prepare(c, mesh, 2)
  state, sums, _ = accumulated(c, mesh, model, tx, state, shardings, batches)
  shards = lambda x: x.addressable_shards[0].data.size / x.size
  assert shards(sums.gradients["layers/mlp/up"]) == 1 / 8 and sums.gradients["layers/mlp/up"].dtype == jnp.float32
  assert shards(state.trainable["layers/mlp/up"]) == (1 if zero == 2 else 1 / 8)
  assert not any(np.asarray(x).any() for x in jax.tree.leaves(sums))  # of nothing again, for the next step


RAMP = ((0, 1), (2, 3), (4, 2))


def ramp(**changes):
  """Six steps in which Moonlight keeps its moments in bfloat16."""
  return config(**{
      "steps": 6, "log_every": 1, "checkpoint_every": 100, "schedule.warmup": 2, "optimizer.name": "moonlight", "optimizer.moment_dtype": "bfloat16",
      "data.accumulate": RAMP, **changes})


def params_of(directory):
  return load.load_pretrained(directory)[1]


def test_a_ramp_stopped_and_resumed_is_bit_identical(tmp_path):
  stage.run(ramp(), tmp_path / "whole")
  for last in (3, 5, None):
    stage.run(ramp(), tmp_path / "broken", stop_after=last)
  whole, broken = (metrics.read(tmp_path / name) for name in ("whole", "broken"))
  same = lambda lines: [(r["step"], r["loss"], r["grad_norm"], r["loss_tokens"], r["tokens_per_step"], r["padding"]) for r in lines]
  assert same(whole) == same(broken) and len(whole) == 6
  assert jax.tree.all(jax.tree.map(np.array_equal, params_of(tmp_path / "whole"), params_of(tmp_path / "broken")))
  ratio = [round(r["tokens_per_step"] / whole[0]["tokens_per_step"], 1) for r in whole]
  assert ratio == pytest.approx([1, 1, 3, 3, 2, 2], abs=0.15)
  assert all(0 <= r["padding"] < 0.2 for r in whole)
  assert ["tokens_per_second" in r for r in whole] == [False, True, False, True, True, True]  # not where a program was compiled


def test_steps_of_one_batch_are_those_without_a_ramp(tmp_path):
  """Until the ramp begins, bit for bit."""
  stage.run(ramp(), tmp_path / "ramp", stop_after=3)
  stage.run(ramp(**{"data.accumulate": ((0, 1),)}), tmp_path / "plain", stop_after=3)
  ramped, plain = ([(r["loss"], r["grad_norm"]) for r in metrics.read(tmp_path / name)] for name in ("ramp", "plain"))
  assert ramped[:2] == plain[:2] and ramped[2] != plain[2]


def test_the_loop_waits_for_each_batch_beside_what_it_started_last(tmp_path, monkeypatch):
  beside, real = [], loop.next_batch
  monkeypatch.setattr(loop, "next_batch", lambda batches, under_way, clock: beside.append(under_way) or real(batches, under_way, clock))
  stage.run(ramp(), tmp_path, stop_after=3)
  assert beside[0] is None and len(beside) > 3 and len({id(x) for x in beside}) == len(beside)


def test_data_that_end_within_a_step_end_the_stage_before_it(tmp_path):
  c = ramp()
  with c.unlocked():
    c.data.sources = ConfigDict({"prose": dict(kind="documents", path="assets/text-train.array_record", share=1.0, window=64, max_tokens=5 * 8 * 64)})
  for _ in range(2):  # it does not go on either
    with pytest.raises(ValueError, match="the data end after step 3 of 6"):
      stage.run(c, tmp_path / "w")
    assert record.latest_step(tmp_path / "w") == 3


@pytest.mark.parametrize("counts", [((0, 2),), ((0, 2), (1, 5))])
def test_no_number_of_batches_compiles_anew(counts):
  c = config(**{"data.accumulate": counts})
  mesh = rules.make_mesh({"data": 1}, jax.devices()[:1])
  model, tx, state, shardings, batches = prepare(c, mesh, 1)
  programs = accumulate.programs(c, model, tx, shardings, stage.gradient_shardings(c, model, tx, mesh))
  put = lambda: stage.put_batch(batches[0], rules.batch_sharding(mesh))
  with jax.set_mesh(mesh):
    sums = programs.start(state, put())
    for i in range(3):
      for _ in range(accumulate.batches(counts, i)):
        sums = programs.add(state, sums, put())
      state, sums, _ = programs.apply(state, sums)
  assert [p._cache_size() for p in programs] == [1, 1, 1]


@pytest.mark.parametrize("knots", [(), ((1, 2),), ((0, 0),), ((0, 1), (0, 2)), ((0, 2), (5, 1.5)), ((0, True),), (3,), ((0, 1), (-1, 2))])
def test_what_is_no_ramp_is_refused(knots, tmp_path):
  c = config()
  with c.unlocked():
    c.data.accumulate = knots
  with pytest.raises(ValueError, match="data.accumulate = .*; use \\(\\(0, batches\\), \\(step, batches\\), ...\\)"):
    stage.run(c, tmp_path / "w")
  assert not list(tmp_path.iterdir())


def test_the_budget_counts_the_sums():
  c = config()
  plain = memory.budget(c, rules.make_mesh({"fsdp": 8}))
  c.data.accumulate = ((0, 1), (100, 4))
  described = compile_lib.describe(c, jax.devices())
  ramped = memory.budget(c, described.mesh)
  size = sum(np.prod(x.sharding.shard_shape(x.shape)) * 4 for x in described.sums.gradients.values())
  assert ramped.sums == ramped.total - plain.total == size and ramped.gradients == plain.gradients
  described_plain = compile_lib.describe(config(), jax.devices())
  assert described_plain.sums is None
  with jax.set_mesh(described.mesh):
    taken = [d.step.lower(*d.arguments).compile().memory_analysis().argument_size_in_bytes for d in (described, described_plain)]
  assert taken[0] - taken[1] == pytest.approx(size, rel=0.01)  # the moments lie there too, though nothing is read of them
