"""What a data source refuses: keys, values, and files that hold something else."""

import dataclasses
import re
import warnings

import pytest

from bluelm_jax.data import faults
from bluelm_jax.data import loader
from bluelm_jax.data import sample
from bluelm_jax.data import sources
from bluelm_jax.data.chat import ChatFormat
from bluelm_jax.data.tasks import lookup
from bluelm_jax.data.tokenizer import Tokenizer
from bluelm_jax.models import presets

MODEL = presets.miniature()
TEXT, SCREENS = "assets/text-test.array_record", "assets/screens-test.array_record"
GOOD = {
    "conversations": dict(kind="conversations", path=TEXT, share=0.5),  # the package ships none
    "documents": dict(kind="documents", path=TEXT, share=0.5, window=64), "reasoning": dict(kind="reasoning", share=1, styles=dict(long=1.0)),
    "screens": dict(kind="screens", path=SCREENS, share=0.5, turns=1, tasks=dict(caption=1.0, list=0)),
    "screen_labels": dict(kind="screen_labels", path=SCREENS, share=0.5), "lookup": dict(kind="lookup", path=TEXT, share=0.5, lengths=(40, 90), notes=4)}


def refusal(config, vision=True, objective=None) -> str:
  chat = ChatFormat(Tokenizer(), MODEL.anyres if vision else None, MODEL.tokens_per_tile)
  with warnings.catch_warnings(), pytest.raises(ValueError) as error:
    warnings.simplefilter("error")
    loader.check({"mine": config}, objective)
    loader.mixture({"mine": config}, chat, 512, 0)
  assert "\n" not in str(error.value)
  return str(error.value)


@pytest.mark.parametrize("kind", sorted(set(GOOD) - {"conversations"}))
def test_a_good_source_is_read(kind):
  chat = ChatFormat(Tokenizer(), MODEL.anyres, MODEL.tokens_per_tile)
  loader.check({"mine": GOOD[kind]}, "dense" if kind == "screen_labels" else "lm")
  assert len(loader.mixture({"mine": GOOD[kind]}, chat, 512, 0)[0].tokens)
  for key in set(GOOD[kind]) - {"window"}:
    words = "unknown kind None" if key == "kind" else f"'mine' of kind '{kind}' has no key '{key}'"
    assert words in refusal({k: v for k, v in GOOD[kind].items() if k != key})


@pytest.mark.parametrize("kind,change,words", [
    ("documents", {"shar": 1}, "has an unknown key 'shar'; its keys are kind, share, path, window"),
    ("documents", {"tasks": {}}, "has an unknown key 'tasks'"), ("documents", {"kind": "novels"}, "unknown kind 'novels'"),
    ("documents", {"share": -0.5}, "share = -0.5; use a number over 0"), ("documents", {"share": 0}, "share = 0"),
    ("documents", {"share": "much"}, "share = 'much'"), ("documents", {"share": float("nan")}, "share = nan"),
    ("documents", {"window": 0}, "window = 0; use a whole number over 0"), ("screens", {"turns": 0}, "turns = 0"), ("screens", {"turns": 1.5}, "turns = 1.5"),
    ("screens", {"tasks": {"tap": 1.0}}, "weigh names of ground, refer, list, caption, read, color"),
    ("screens", {"tasks": {"list": -1.0, "read": 2.0}}, "not numbers of at least 0"), ("screens", {"tasks": {"list": 0.0}}, "one of them over 0"),
    ("screens", {"tasks": {}}, "one of them over 0"), ("reasoning", {"styles": {"medium": 1.0}}, "weigh names of none, long, short"),
    ("reasoning", {"styles": 3}, "styles = 3"), ("screens", {"path": TEXT}, "has no good example among its first 48: "),
    ("screen_labels", {"path": TEXT}, "has no good example among its first 48: "), ("documents", {"path": SCREENS}, "is without text"),
    ("documents", {"path": "nowhere"}, "no data at nowhere"), ("documents", {"path": 3}, "path = 3; give the path"),
    ("documents", {"path": ()}, "path = ()"), ("documents", {"path": ("a", 3)}, "path = ('a', 3)"), ("documents", {"epochs": 0}, "epochs = 0; use a whole number over 0"),
    ("conversations", {"max_examples": 1.5}, "max_examples = 1.5"), ("screens", {"max_tokens": -1}, "max_tokens = -1"), ("reasoning", {"epochs": 2}, "has an unknown key 'epochs'"),
    ("conversations", {"path": TEXT}, "is no conversation"), ("documents", {"share": ((0, 1),  (0, 2))}, "use ((step, share), ...) with rising steps, one share over 0"),
    ("documents", {"share": ((5, 1),  (0, 2))}, "rising steps"), ("documents", {"share": ((0, 0),  (5, 0))}, "one share over 0"), ("documents", {"share": ((0, "x"),)}, "rising steps"),
    ("lookup", {"lengths": (90, 40)}, "lengths = (90, 40); use (fewest, most) tokens of text"), ("lookup", {"lengths": 90}, "lengths = 90"),
    ("lookup", {"notes": 27}, "notes = 27; use a whole number from 1 to 26"), ("lookup", {"notes": 1.5}, "notes = 1.5"),
    ("lookup", {"path": SCREENS}, "is without text"), ("documents", {"share": ()}, "one share over 0"), ("documents", {"share": (0, 1)}, "rising steps")])
def test_a_bad_source_is_refused(kind, change, words):
  assert words in refusal({**GOOD[kind], **change})


@pytest.mark.parametrize("config", [3, None, "documents"])
def test_a_source_is_a_dict(config):
  assert "data source 'mine' has unknown kind None" in refusal(config)


@pytest.mark.parametrize("kind", ["screens", "screen_labels"])
def test_screens_need_a_vision_tower(kind):
  assert "has no vision tower" in refusal(GOOD[kind], vision=False)


@pytest.mark.parametrize("kind,objective", [("documents", "dense"), ("screens", "dense"), ("screen_labels", "lm")])
def test_a_source_serves_its_objective(kind, objective):
  assert f"does not serve objective '{objective}'" in refusal(GOOD[kind], objective=objective)


@pytest.mark.parametrize("change", [
    {"language": "fr"}, {"caption": None}, {"elements": {}}, {"elements": ["x"]}, {"role": "door"}, {"role": ["tab"]}, {"text": None}, {"color": ["red"]}, {"box": [0, 0, 1]}, {"box": "0011"},
    {"box": [0.0, 0.0, 1.0, float("inf")]}, {"box": [0, 0, 1, "1"]}])
def test_a_screen_that_is_none_is_bad(change, tmp_path):
  good = sources.Records(SCREENS)[0]
  meta, element = dict(good.meta), dict(good.meta["elements"][0])
  if set(change) <= set(meta):
    meta |= change
  else:
    meta["elements"] = [element | change]
  sample.write_shard(tmp_path / "x.array_record", [good, dataclasses.replace(good, meta=meta)])
  rest = (str(tmp_path / "x.array_record"), ChatFormat(Tokenizer(), MODEL.anyres, MODEL.tokens_per_tile), 0, 0)
  for examples in (sources.screen_labels(*rest).examples, sources.screen_tasks(rest[0], {"caption": 1.0}, 1, *rest[1:]).examples):
    found = [e for e in (examples[i] for i in range(2)) if isinstance(e, faults.Bad)]
    assert [(e.record, e.kind) for e in found] == [(1, "record")] and "is no screen" in found[0].message


def test_files_that_are_no_shard(tmp_path):
  whole = (sources.ASSETS / "text-test.array_record").read_bytes()
  damaged = bytearray(whole)
  damaged[len(whole) // 3 : len(whole) // 3 + 2000] = bytes(2000)
  path = tmp_path / "x.array_record"
  for data in (b"", b"hello" * 20_000, whole[: len(whole) // 2]):
    path.write_bytes(data)
    assert f"{path} is no ArrayRecord shard" in refusal({**GOOD["documents"], "path": str(path)})
  path.write_bytes(damaged)
  examples, records = loader.mixture({"mine": {**GOOD["documents"], "path": str(path)}}, ChatFormat(Tokenizer(), None, 1), 64, 0), sources.Records(str(path))
  bad = {e.record: e for e in (examples[i] for i in range(len(records))) if isinstance(e, faults.Bad)}
  assert 0 < len(bad) < len(records) and all(e.message.startswith(f"{path}: record {i} is damaged") and e.kind == "record" for i, e in bad.items())
  with pytest.raises(ValueError, match=f"{path}: record {min(bad)} is damaged"):
    records[min(bad)]
  sample.write_shard(path, [])
  assert f"{path} holds no records" in refusal({**GOOD["documents"], "path": str(path)})


def test_notes_stand_in_the_text_and_are_asked_for():
  chat = ChatFormat(Tokenizer(), None, 1)
  for seed in range(5):
    example = sources.lookups("assets/text-test.array_record", chat, (300, 300), 6, seed, 2).examples[0]
    text = chat.tokenizer.decode(example.tokens)
    notes = re.findall(r"\((?:note|记) ([A-Z]\d\d)\)", text)
    answers = re.findall(r"\[\|AI\|\]:([A-Z]\d\d)", text)
    asked = re.findall(r"\n?(?:Note|记) ([A-Z])\?\[", text)
    assert len(set(notes)) == 6 and sorted(notes) == sorted(answers) and asked == [a[0] for a in answers]
    spoken = chat.tokenizer.decode(example.targets[example.loss_weights > 0])
    assert spoken == "".join(f"{a}<|endoftext|>" for a in answers) and example.source == 2
    assert 300 <= len(example.tokens) <= 300 + 6 * lookup.MOST_TOKENS
