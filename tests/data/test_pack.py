"""Packing: nothing lost, nothing mixed, and resume to the example."""

import json
import multiprocessing
import pathlib

import grain
import hypothesis
import hypothesis.strategies as st
import jax
import numpy as np
import pytest

from bluelm_jax.data import loader
from bluelm_jax.data import pack
from bluelm_jax.data.batch import Example
from bluelm_jax.data.tokenizer import Tokenizer
from bluelm_jax.models import presets
from bluelm_jax.sharding import rules
from bluelm_jax.training import defaults
from bluelm_jax.training import stage

ROOT = pathlib.Path(__file__).parents[2]
N = 4  # tokens a tile


def example(number, length, tiles, rng):
  """Tokens that say which example they are from; its tiles are filled with its number."""
  length = max(length, tiles * N + 1)
  vision_index = np.full(length, -1, np.int32)
  vision_index[: tiles * N] = np.arange(tiles * N)
  tokens = number * 1000 + np.arange(length, dtype=np.int32)
  return Example(
      tokens, tokens + 1, (rng.random(length) < 0.5).astype(np.float32), vision_index, np.full((tiles, 2, 2, 3), number % 256, np.uint8),
      np.arange(tiles, dtype=np.int32) + number)


@hypothesis.settings(max_examples=150, deadline=None)
@hypothesis.given(
    st.lists(st.tuples(st.integers(1, 40), st.integers(0, 3)), min_size=1, max_size=25), st.sampled_from([(2, 1), (2, 2), (4, 2), (1, 1)]), st.integers(0, 99))
def test_nothing_is_lost_or_mixed(sizes, shape, seed):
  rows, groups = shape
  rng = np.random.default_rng(seed)
  examples = [example(i + 1, n, t, rng) for i, (n, t) in enumerate(sizes)]
  spec = pack.PackSpec(rows, 40, groups, 5, 2, N)
  found = {}
  for b in pack.pack(examples, spec):
    assert b.tokens.shape == (rows, 40) and b.tiles.shape == (groups, 5, 2, 2, 3)
    padding = b.segment_ids == 0
    assert not b.loss_weights[padding].any() and (b.vision_index[padding] == -1).all() and not b.positions[padding].any()
    for r in range(rows):
      ids = b.segment_ids[r]
      last = ids.max()
      assert np.array_equal(ids[ids > 0], np.sort(ids[ids > 0])) and set(ids[ids > 0]) == set(range(1, last + 1))
      for s in range(1, last + 1):
        at = ids == s
        number = int(b.tokens[r, at][0]) // 1000
        assert number not in found
        tile = b.vision_index[r, at]
        tiles = b.tiles[r // (rows // groups)]
        places = b.tile_places[r // (rows // groups)]
        assert (tiles[tile[tile >= 0] // N] == number).all()
        assert np.array_equal(places[tile[tile >= 0] // N] - number, examples[number - 1].vision_index[tile >= 0] // N)
        assert np.array_equal(b.positions[r, at], np.arange(at.sum()))
        found[number] = (b.tokens[r, at], b.targets[r, at], b.loss_weights[r, at])
  assert set(found) == set(range(1, len(examples) + 1))
  for number, arrays in found.items():
    for have, want in zip(arrays, examples[number - 1]):
      assert np.array_equal(have, want)


def test_rows_must_divide_into_groups():
  with pytest.raises(ValueError, match="multiple of the 3"):
    pack.PackSpec(4, 8, 3)


def stream(count, length, seed=0, images=True):
  """A grain dataset of examples of lognormal lengths, some longer than `length`, a third with images; each can be read by index."""

  def read(i):
    rng = np.random.default_rng((seed, i))
    n = int(rng.lognormal(np.log(length / 8), 1.0)) + 1
    t = int(rng.integers(1, 5)) if images and rng.random() < 0.3 else 0
    return example(i % 2_000_000, min(n, 2 * length) + t * N, t, rng)

  return grain.MapDataset.range(count).map(read)


def numbers(batch):
  """Examples of a batch, row by row."""
  return [[int(t) // 1000 for t, p in zip(row, at) if p] for row, at in zip(batch.tokens, (batch.segment_ids > 0) & (batch.positions == 0))]


def test_offline_rows_are_no_more_than_those_of_best_fit_decreasing():
  rng = np.random.default_rng(0)
  lengths = np.clip(rng.lognormal(np.log(50), 1.2, 600).astype(int), 1, 512)
  examples = [example(i, int(n), 0, rng) for i, n in enumerate(lengths)]
  ours = [row for b in pack.pack(examples, pack.PackSpec(8, 512)) for row in numbers(b) if row]
  rooms = []
  for n in sorted(lengths, reverse=True):  # each into the fullest row that has room
    fits = [i for i, room in enumerate(rooms) if room >= n]
    if fits:
      rooms[min(fits, key=lambda i: rooms[i])] -= n
    else:
      rooms.append(512 - n)
  assert len(ours) <= len(rooms) <= np.ceil(lengths.sum() / 512) + 1
  assert sorted(i for row in ours for i in row) == list(range(600))


@pytest.mark.parametrize("policy,read_again", [("split", True), ("truncate", False), ("drop", False)])
def test_overlong_examples_are_counted_and_come_back_after_a_resume(policy, read_again):
  spec = pack.PackSpec(4, 64, 2, 8, 2, N, policy)
  it = pack.PackIterator(stream(10_000, 64), spec)
  for _ in range(20):
    next(it)
  state = json.loads(json.dumps(it.get_state()))  # as a checkpoint keeps it
  counts = it.get_stats()
  assert ("overlong/cut" in counts) == (policy != "drop") and ("overlong/dropped" in counts) == (policy == "drop")
  assert len({index for index, _ in state["waiting"]}) < len(state["waiting"]) or not read_again  # two pieces of one wait
  expected = [next(it) for _ in range(3)]
  again = pack.PackIterator(stream(10_000, 64), spec)
  again.set_state(state)
  assert again.get_stats() == counts
  for want in expected:
    assert all(np.array_equal(a, b) for a, b in zip(want, next(again)))
  assert again.get_stats() == it.get_stats() and again.get_state() == it.get_state()


def test_an_unknown_policy_is_refused():
  with pytest.raises(ValueError, match="data.overlong 'cut' is unknown; use drop, truncate, split"):
    pack.PackSpec(4, 8, overlong="cut")


def test_every_example_is_seen_once_and_soon():
  """In order but for the window, for every number of row groups."""
  for groups in (1, 4):
    it, seen = pack.PackIterator(stream(10_000, 64), pack.PackSpec(8, 64, groups, 40 // groups, 2, N, "drop")), []
    for _ in range(30):
      seen += [i for row in numbers(next(it)) for i in row]
    waiting = {index for index, _ in it.get_state()["waiting"]}
    assert len(seen) == len(set(seen)) and not waiting & set(seen)
    dropped = set(range(it.get_state()["next_index"])) - set(seen) - waiting
    assert len(dropped) == it.get_stats()["overlong/dropped"]
    order = np.array(seen)
    assert np.abs(np.searchsorted(np.sort(order), order) - np.arange(len(order))).max() < 2 * pack.WINDOWS[-1][0]


def test_rows_of_very_many_examples_are_filled():
  it = pack.PackIterator(grain.MapDataset.range(1 << 20).map(lambda i: example(i, 3 + i % 5, 0, np.random.default_rng(i))), pack.PackSpec(2, 4096))
  assert min((next(it).segment_ids > 0).mean() for _ in range(3)) > 0.99


def test_rows_and_ranks_are_filled_alike():
  """Tokens, tiles and attention of eight ranks, as the trainer would see them."""
  spec = pack.PackSpec(64, 512, 8, 34, 2, N, "drop")
  it, loads, of_rows = pack.PackIterator(stream(1 << 20, 512), spec), [], []
  for _ in range(6):
    b = next(it)
    lengths = [np.bincount(row)[1:] for row in b.segment_ids]
    tiles = [len(np.unique(row[row >= 0] // N)) for row in b.vision_index]
    of_rows.append(tiles)
    loads.append(np.array([(n.sum(), (n**2).sum(), t) for n, t in zip(lengths, tiles)]).reshape(8, -1, 3).sum(1))
  loads = np.array(loads, float)
  assert loads[..., 0].mean() > 0.99 * 8 * 512 and loads[..., 2].mean() > 0.95 * 34
  assert ((loads.max(1) / loads.mean(1)).mean(0) <= [1.02, 1.10, 1.02]).all()
  assert np.std(of_rows) < 2  # each row has its share: 5.9 if the first ones take what there is


def batches(name, workers=0, **changes):
  config = defaults.load(f"{ROOT}/configs/stages/{name}.py:miniature")
  config.data.update(changes)
  mesh = rules.make_mesh({"data": 1}, jax.devices()[:1])
  spec, chat = stage.batch_shape(config, presets.miniature(), mesh, Tokenizer())
  return loader.batches(config.data.sources, chat, spec, config.seed, workers)


@pytest.mark.parametrize("name", ["text", "vision", "joint", "sft"])
def test_resume_gives_the_same_batches(name):
  first = batches(name)
  start, tried = first.get_state(), next(first)
  first.set_state(start)  # as a stage tries its data
  assert all(np.array_equal(a, b) for a, b in zip(tried, next(first)))
  for _ in range(2):
    next(first)
  state = first.get_state()
  expected = [next(first) for _ in range(3)]
  second = batches(name)
  second.set_state(state)
  for want in expected:
    have = next(second)
    assert all(np.array_equal(a, b) for a, b in zip(want, have))


def test_rows_are_filled():
  it = batches("joint", tile_slots=14)  # the mix needs 13.1
  filled = [((b := next(it)).segment_ids > 0).mean() for _ in range(30)]
  assert np.mean(filled) > 0.985  # in order, 0.89


def test_processes_that_read_change_nothing():
  here, there = batches("joint"), batches("joint", workers=2)
  for _ in range(2):
    want, have = next(here), next(there)
    assert all(np.array_equal(a, b) for a, b in zip(want, have))
  assert len(multiprocessing.active_children()) >= 2
  here.set_state(there.get_state())
  assert all(np.array_equal(a, b) for a, b in zip(next(here), next(there)))


def test_joint_batches_hold_their_share_of_text():
  """40 % of the tokens are text without images, as the recipe says."""
  it, text, all_tokens = batches("joint"), 0, 0
  for _ in range(60):
    b = next(it)
    for r in range(len(b.tokens)):
      for s in range(1, b.segment_ids[r].max() + 1):
        at = b.segment_ids[r] == s
        all_tokens += at.sum()
        text += at.sum() * (b.vision_index[r, at] < 0).all()
  assert 0.34 < text / all_tokens < 0.46


def test_examples_that_never_fit_end_in_a_clear_error():
  with pytest.raises(ValueError, match="raise data.length or data.tile_slots"):
    next(batches("adapter", tile_slots=1))


def test_a_source_needs_its_data(tmp_path):
  config = defaults.load(f"{ROOT}/configs/stages/text.py:miniature")
  config.data.sources.prose.path = str(tmp_path / "none.array_record")
  with pytest.raises(ValueError, match="no data at"):
    loader.mixture(config.data.sources, None, 8, 0)
  config.data.sources.prose.kind = "novels"
  with pytest.raises(ValueError, match="unknown kind 'novels'"):
    loader.mixture(config.data.sources, None, 8, 0)
