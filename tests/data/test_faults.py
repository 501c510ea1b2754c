"""Bad records are skipped, counted and listed; what is good comes once, in the same order, however it is read and resumed."""

import base64
import io
import json
import multiprocessing

import numpy as np
from PIL import Image
import pytest

from bluelm_jax.data import faults
from bluelm_jax.data import loader
from bluelm_jax.data import pack
from bluelm_jax.data.chat import ChatFormat
from bluelm_jax.data.tokenizer import Tokenizer
from bluelm_jax.models import presets

MODEL = presets.miniature()
CHAT = ChatFormat(Tokenizer(), MODEL.anyres, MODEL.tokens_per_tile)
SPEC = pack.PackSpec(2, 128, 1, 4, MODEL.anyres.tile_size, MODEL.tokens_per_tile)


def png(size=(30, 20), kind="PNG", **options):
  out = io.BytesIO()
  Image.fromarray(np.random.default_rng(0).integers(0, 255, (*size, 3)).astype(np.uint8)).save(out, kind, **options)
  return out.getvalue()


def talk(i, image=None, **changes):
  return {"messages": [{"role": "user", "content": f"Say {i}."}, {"role": "assistant", "content": f"It is {i}!"}], **({"image": image} if image else {}), **changes}


def uri(data):
  return "data:image/png;base64," + base64.b64encode(data).decode()


def bomb():
  """A PNG that says it is 60,000 pixels a side."""
  data = bytearray(png())
  data[16:24] = (60_000).to_bytes(4, "big") * 2
  return bytes(data)


BAD = {  # line -> its kind; ten ways to be wrong
    '{"messages": [{"role": "us': "record", "[1, 2, 3]": "record", '{"question": "a", "answer": "b"}': "record", json.dumps(talk(1, uri(png()[:-90]))): "image",
    json.dumps(talk(1, uri(bomb()))): "image", json.dumps(talk(1, uri(b"not a picture"))): "image", json.dumps(talk(1, "missing.png")): "image", json.dumps(talk(1, uri(png((2, 2))))): "image",
    json.dumps({"messages": [{"role": "robot", "content": "x"}]}): "conversation", json.dumps({"messages": talk(1)["messages"][:1]}): "conversation"}


def write(path, count=500, every=50):
  """`count` conversations, one in `every` replaced by a bad line; returns what is where."""
  lines, wrong = [json.dumps(talk(i, uri(png()) if i % 5 == 0 else None)) for i in range(count)], {}
  for n, (line, kind) in enumerate(BAD.items()):
    lines[7 + n * every], wrong[7 + n * every] = line, kind
  path.write_text("\n".join(lines))
  return set(range(count)) - set(wrong), wrong


def batches(path, workers=0, quarantine=None, share=0.05, **config):
  source = {"kind": "conversations", "path": str(path), "share": 1.0, **config}
  return loader.batches({"mine": source}, CHAT, SPEC, 3, workers, quarantine, share)


def said(batch):
  """The numbers the conversations of a batch say, in order."""
  found = []
  for r in range(len(batch.tokens)):
    for s in range(1, batch.segment_ids[r].max() + 1):
      here = (batch.segment_ids[r] == s) & (batch.vision_index[r] < 0)
      found.append(int(CHAT.tokenizer.decode(batch.tokens[r][here]).partition("Say ")[2].partition(".")[0]))
  return found


def test_ten_kinds_of_bad_records(tmp_path):
  """Every good record once, every bad one in quarantine, counted by kind; the data end after an epoch."""
  good, wrong = write(tmp_path / "x.jsonl")
  it = batches(tmp_path / "x.jsonl", quarantine=tmp_path / "w/quarantine.jsonl", epochs=1)
  assert not (tmp_path / "w").exists()
  assert sorted(n for b in it for n in said(b)) == sorted(good)
  with pytest.raises(StopIteration):
    next(it)
  listed = [json.loads(line) for line in (tmp_path / "w/quarantine.jsonl").read_text().splitlines()]
  assert {e["index"]: e["kind"] for e in listed} == wrong and len(listed) == len(wrong)
  assert all(e["source"] == "mine" and e["file"] == str(tmp_path / "x.jsonl") and e["message"].startswith(f"{e['file']}: record {e['index']} ") for e in listed)
  values = it.get_stats()
  assert (values["bad/record"], values["bad/image"], values["bad/conversation"]) == (3, 5, 2) and values["epoch/mine"] == 1.0


def test_readers_and_stops_change_nothing(tmp_path):
  """The same batches, counts and list with reader processes, and when stopped anywhere and begun again."""
  write(tmp_path / "x.jsonl", 300, 30)
  whole = batches(tmp_path / "x.jsonl", quarantine=tmp_path / "a", epochs=2)
  want = [said(b) for b in whole]
  readers = batches(tmp_path / "x.jsonl", 2, tmp_path / "b", epochs=2)
  have, state = [], None
  for _ in range(2):
    have.append(said(next(readers)))
  assert len(multiprocessing.active_children()) >= 2
  state = json.loads(json.dumps(readers.get_state()))
  next(readers), next(readers)  # trained, and lost with the process
  again = batches(tmp_path / "x.jsonl", 0, tmp_path / "b", epochs=2)
  again.set_state(state)
  have += [said(b) for b in again]
  assert have == want and again.get_stats() == whole.get_stats() and whole.get_stats()["bad/record"] == 6
  entries = [sorted((tmp_path / n).read_text().splitlines()) for n in "ab"]
  assert entries[0] == entries[1] and len(entries[0]) == 10


def test_too_many_stop_the_run(tmp_path):
  write(tmp_path / "x.jsonl", 2000, 50)
  lines = (tmp_path / "x.jsonl").read_text().splitlines()
  lines[3::40] = ["broken"] * len(lines[3::40])  # 2.5 %
  (tmp_path / "x.jsonl").write_text("\n".join(lines))
  it = batches(tmp_path / "x.jsonl", quarantine=tmp_path / "q.jsonl", share=0.01)
  with pytest.raises(ValueError) as error:
    for _ in range(500):
      next(it)
  message = str(error.value)
  assert "examples are bad (" in message and f"all are in {tmp_path}/q.jsonl; mend the data, or raise data.max_bad_share = 0.01" in message and "\n" not in message
  assert int(message.split()[0]) == 11 == len((tmp_path / "q.jsonl").read_text().splitlines())
  it = batches(tmp_path / "x.jsonl", share=0.5)
  for _ in range(100):
    next(it)


def test_none_may_be_bad(tmp_path):
  write(tmp_path / "x.jsonl")
  with pytest.raises(ValueError, match="1 of [0-9]+ examples are bad"):
    list(batches(tmp_path / "x.jsonl", share=0.0, epochs=1))


def test_where_all_are_bad_the_first_is_shown(tmp_path):
  (tmp_path / "x.jsonl").write_text("broken\n" * 30)
  with pytest.raises(ValueError, match=r"'mine' has no good example among its first 48: .*x.jsonl: record [0-9]+ is no JSON object"):
    batches(tmp_path / "x.jsonl", share=1.0)


def test_a_good_start_does_not_hide_the_rest(tmp_path):
  """With every share allowed, a run still ends where nothing but bad examples comes."""
  found = faults.Quarantine(["mine"], None, 1.0)
  with pytest.raises(ValueError, match="1000 of 1000 examples are bad"):
    for i in range(2000):
      found.add(faults.Bad(0, "f", i, "image", "f: record is bad"), i + 1)


def test_a_list_goes_on_after_a_kill(tmp_path):
  """Half a line at the end, of a run killed while it wrote, is written again; a record is listed once."""
  bad = [faults.Bad(0, "f", i, "image", f"f: record {i} is bad 坏") for i in range(3)]
  first = faults.Quarantine(["mine"], tmp_path / "q")
  first.add(bad[0], 100)
  first.add(bad[1], 101)
  text = (tmp_path / "q").read_bytes()
  (tmp_path / "q").write_bytes(text[:-9])
  second = faults.Quarantine(["mine"], tmp_path / "q")
  for b in (bad[1], bad[1], bad[2], bad[0]):
    second.add(b, 200)
  assert [json.loads(line)["index"] for line in (tmp_path / "q").read_text().splitlines()] == [0, 1, 2] and second.counts == {"image": 4}


def test_sources_report_tokens_and_epochs(tmp_path):
  write(tmp_path / "x.jsonl", 300, 30)
  (tmp_path / "y.jsonl").write_text("\n".join(json.dumps({"text": f"document {i} " * 9}) for i in range(40)))
  config = {
      "talks": {"kind": "conversations", "path": str(tmp_path / "x.jsonl"), "share": ((0, 0.9), (20, 0.5))},
      "prose": {"kind": "documents", "path": str(tmp_path / "y.jsonl"), "share": 0.5, "epochs": 3}, "made": {"kind": "reasoning", "styles": {"none": 1.0}, "share": 0.1}}
  it, tokens = loader.batches(config, CHAT, SPEC, 0, max_bad_share=1.0), 0
  for _ in range(60):
    tokens += (next(it).segment_ids > 0).sum()
  values = it.get_stats()
  assert sum(v for k, v in values.items() if k.startswith("tokens/")) == tokens
  assert values["epoch/prose"] == 3.0 and values["epoch/talks"] > 0.5 and "epoch/made" not in values
  assert values["tokens/made"] > 0 and it.get_state().keys() == {"next_index", "waiting", "overlong", "tokens", "bad"}
  assert len(json.dumps(it.get_state())) < 3000  # 128 examples wait at most


@pytest.mark.parametrize("cap,want", [({"max_examples": 70}, 70), ({"max_examples": 70, "epochs": 1}, 40), ({"epochs": 2}, 80), ({"max_tokens": 10**9, "epochs": 1}, 40)])
def test_caps_end_the_data(cap, want, tmp_path):
  (tmp_path / "y.jsonl").write_text("\n".join(json.dumps(talk(i)) for i in range(40)))
  found = [n for b in batches(tmp_path / "y.jsonl", **cap) for n in said(b)]
  assert len(found) == want and set(found) == set(range(40)) and max(map(found.count, found)) == -(-want // 40)


def test_a_cap_of_tokens(tmp_path):
  (tmp_path / "y.jsonl").write_text("\n".join(json.dumps(talk(i)) for i in range(40)))
  tokens = sum((b.segment_ids > 0).sum() for b in batches(tmp_path / "y.jsonl", max_tokens=3000))
  assert tokens == pytest.approx(3000, rel=0.05)
