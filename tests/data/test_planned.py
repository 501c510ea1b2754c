"""Rows by the packing plan of a prepared data set: as planned, again after a stop, and refused where they do not fit."""

import json
import re

import numpy as np
import pytest

from bluelm_jax.data import loader
from bluelm_jax.data import pack
from bluelm_jax.data import planned
from bluelm_jax.data import sample as sample_lib
from bluelm_jax.data.chat import ChatFormat
from bluelm_jax.data.sample import Sample
from bluelm_jax.data.tokenizer import Tokenizer
from bluelm_jax.pipeline import documents

ROW = 256
CHAT = ChatFormat(Tokenizer(), None, 1)
SPEC = pack.PackSpec(4, ROW)


@pytest.fixture
def prepared(tmp_path):
  """Two shards and their plan, as prepare leaves them; text i of a shard is "i i i ...", and one is longer than a row."""
  plans = {}
  for shard in range(2):
    rng = np.random.default_rng(shard)
    texts = [f"{shard}{i:02d} " * int(n) for i, n in enumerate([*rng.integers(3, 24, 99), 300])]
    name = f"en-train-{shard:05d}-of-00002.array_record"
    sample_lib.write_shard(tmp_path / name, [Sample(f"made: {i}", "-", text) for i, text in enumerate(texts)])
    plans[name] = documents.packing([len(CHAT.tokenizer.encode(text)) for text in texts], ROW)
  (tmp_path / sample_lib.PACKING).write_text(json.dumps({"row": ROW, "tokenizer": CHAT.tokenizer.digest, "rows": plans}))
  return tmp_path


def source(folder, **more):
  return {"mine": dict(kind="documents", path=f"{folder}/*.array_record", share=1.0, packing="plan", **more)}


def number(ids) -> tuple[int, int]:
  """(shard, record) of a segment, by what it says."""
  said = re.search(r"(\d)(\d\d) ", CHAT.tokenizer.decode(ids))
  return int(said[1]), int(said[2])


def rows(batch):
  """Of every row that holds anything, the documents in it; each begins anew."""
  found = []
  for tokens, segments, positions in zip(batch.tokens, batch.segment_ids, batch.positions):
    parts = [np.flatnonzero(segments == s) for s in range(1, segments.max() + 1)]
    assert all(np.array_equal(positions[at], np.arange(len(at))) for at in parts)
    found += [[number(tokens[at]) for at in parts]] if parts else []
  return found


def test_an_epoch_is_the_plan(prepared):
  plan = json.loads((prepared / sample_lib.PACKING).read_text())["rows"]
  wanted = sorted([(shard, i) for i in row] for shard, (_, some) in enumerate(sorted(plan.items())) for row in some)
  batches = list(loader.batches(source(prepared, epochs=1), CHAT, SPEC, 0))
  found = [row for batch in batches for row in rows(batch)]
  # Two rows that are half empty, the last of each shard, may meet in one.
  joined = [row for row in found if row not in wanted]
  assert sorted(document for row in found for document in row) == sorted(document for row in wanted for document in row) and len(joined) <= 1
  assert found != [row for batch in loader.batches(source(prepared, epochs=1), CHAT, SPEC, 1) for row in rows(batch)]  # another seed, another order
  ends = np.concatenate([batch.targets[batch.segment_ids > 0] for batch in batches]) == CHAT.tokenizer.end_id
  assert ends.sum() >= 198  # whole, but for a window of each that is longer than a row


def test_rows_are_as_full_as_those_made_online(prepared):
  fills = []
  for packing in ({"packing": "plan"}, {}):
    config = {"mine": dict(kind="documents", path=f"{prepared}/*.array_record", share=1.0, epochs=1, **packing)}
    batches = list(loader.batches(config, CHAT, SPEC, 0))[:-1]  # the last ends where the data do
    fills.append(np.mean([(batch.segment_ids > 0).mean() for batch in batches]))
  assert fills[0] > 0.97 and fills[0] > fills[1] - 0.02


def test_a_stop_and_reader_processes_change_nothing(prepared):
  here, there = (loader.batches(source(prepared), CHAT, SPEC, 5, workers=workers) for workers in (0, 2))
  for _ in range(7):  # into the second epoch
    want, have = next(here), next(there)
    assert all(np.array_equal(a, b) for a, b in zip(want, have))
  again = loader.batches(source(prepared), CHAT, SPEC, 5)
  again.set_state(json.loads(json.dumps(here.get_state())))
  assert all(np.array_equal(a, b) for a, b in zip(next(here), next(again)))


def test_a_long_row_takes_several_planned_ones(prepared):
  batch = next(loader.batches(source(prepared), CHAT, pack.PackSpec(2, 2 * ROW), 0))
  assert (batch.segment_ids > 0).mean() > 0.9


@pytest.mark.parametrize("change, spec, words", [
    ({}, pack.PackSpec(4, 300), "plans rows of 256 tokens, which do not fill rows of 300; prepare with config.packing_length = 300"),
    ({}, pack.PackSpec(4, 128), "do not fill rows of 128"), ({"tokenizer": "0"}, SPEC, "counts tokens of another tokenizer than"), ({"rows": {}}, SPEC, "is no plan of en-train-00000-of-00002.array_record as it is"),
    ({"rows": 3}, SPEC, "there is no packing plan of this form at"), ({"tokenizer": None}, SPEC, "there is no packing plan of this form at")])
def test_a_plan_that_does_not_fit_is_refused(prepared, change, spec, words):
  path = prepared / sample_lib.PACKING
  path.write_text(json.dumps(json.loads(path.read_text()) | change))
  with pytest.raises(ValueError, match=re.escape(words)) as error:
    loader.batches(source(prepared), CHAT, spec, 0)
  assert "\n" not in str(error.value)


def test_a_plan_of_other_records_is_refused(prepared):
  sample_lib.write_shard(prepared / "en-train-00001-of-00002.array_record", [Sample("made", "-", "one more")])
  with pytest.raises(ValueError, match="is no plan of en-train-00001-of-00002.array_record as it is"):
    loader.batches(source(prepared), CHAT, SPEC, 0)


@pytest.mark.parametrize("more, words", [({"packing": "online"}, "packing = 'online'; use 'plan'"), ({"window": 64}, "packing = 'plan'; use 'plan', without a window")])
def test_keys_that_do_not_go_together(prepared, more, words):
  config = source(prepared)
  config["mine"] |= more
  with pytest.raises(ValueError, match=re.escape(words)):
    loader.check(config)


def test_images_are_not_planned(prepared):
  name = prepared / "en-train-00000-of-00002.array_record"
  sample_lib.write_shard(name, [Sample("made", "-", "<image>what is seen", images=(b"x",))] * 100)
  with pytest.raises(ValueError, match="is not text alone"):
    loader.batches({"mine": {**source(prepared)["mine"], "path": str(name)}}, CHAT, SPEC, 0)
