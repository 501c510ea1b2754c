"""The whole pipeline: from a folder to shards, again, and after a stop."""

import hashlib
import importlib.util
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import cv2
import numpy as np
import pytest

pytest.importorskip("apache_beam")

from bluelm_jax.data import loader
from bluelm_jax.data import pack
from bluelm_jax.data import sample as sample_lib
from bluelm_jax.data import sources
from bluelm_jax.data.chat import ChatFormat
from bluelm_jax.data.tokenizer import Tokenizer
from bluelm_jax.pipeline import defaults
from bluelm_jax.pipeline import run
from bluelm_jax.pipeline import stages
from bluelm_jax.pipeline.ingest import read

ROOT = pathlib.Path(__file__).parents[2]
ONE = ["--runner=FnApiRunner", "--direct_running_mode=in_memory", "--direct_num_workers=1"]
SENT = ["--runner=PortableRunner", "--job_endpoint=embed", "--environment_type=LOOPBACK"]  # the pipeline goes to a job server, as to Flink's or Spark's
THREE = ["--runner=FnApiRunner", "--direct_running_mode=multi_threading", "--direct_num_workers=3"]


def picture(seed, size=(64, 64)):
  image = np.random.default_rng(seed).integers(0, 255, (4, 4, 3)).astype(np.uint8)
  return cv2.imencode(".png", cv2.resize(image, size, interpolation=cv2.INTER_NEAREST))[1].tobytes()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """Prose of the shipped shard in several forms, with a copy, a near copy, a bad line, and what each rule is there for."""
  root = tmp_path_factory.mktemp("raw")
  shard = sources.read_shard("assets/text-train.array_record")
  texts = [shard[i].text for i in range(120)]
  rows = [{"text": t} for t in texts] + [
      {"text": texts[0].upper() if texts[0].isascii() else texts[0] + "！"}, {"text": texts[1] + "\n" + texts[2][:60]},
      {"text": "Der Fluss fließt durch das Tal und an der alten Mühle vorbei, und viele Leute gehen an ihm entlang. " * 2}, {"text": "This is English without any doubt, but the text is too short for the rule."}, {"text": "  \u200b "}]
  for i in range(3):
    (root / f"{i}.jsonl").write_text("\n".join(json.dumps(r, ensure_ascii=False) for r in rows[i::3]) + ("\nno json\n" if i == 0 else ""), "utf-8")
  (root / "chat.jsonl").write_text(json.dumps({"messages": [{"role": "user", "content": "What is it?"}, {"role": "assistant", "content": "It is a river."}]}) + "\n")
  for name, seed, size in (("a", 1, (64, 64)), ("b", 2, (64, 64)), ("c", 1, (96, 80))):  # c shows what a shows
    (root / f"{name}.png").write_bytes(picture(seed, size))
    (root / f"{name}.txt").write_text(f"A picture of squares, the one called {name}.")
  return root


def config(folder, **more):
  c = defaults.dataset()
  c.name = "test"
  c.sources.prose = dict(kind="json", path=f"{folder}/[0-9].jsonl", licence="MIT")
  c.sources.chat = dict(kind="json", path=f"{folder}/chat.jsonl", licence="CC0-1.0", language="en")
  c.sources.pictures = dict(kind="captioned_images", path=f"{folder}/*", licence="CC0-1.0")
  c.block_bytes, c.quality.rules = 40_000, ("gopher", "c4", "fineweb")
  c.update(more)
  return c


def digest(output):
  return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(pathlib.Path(output).iterdir()) if p.is_file()}


@pytest.fixture(scope="module")
def made(folder, tmp_path_factory):
  output = tmp_path_factory.mktemp("made")
  return output, run.run(config(folder), str(output), ONE)


def test_every_stage_says_what_it_removed(made):
  _, manifest = made
  y = manifest["yields"]
  assert y["ingest"] == {"documents": 125 + 1 + 3, "unreadable": 1}
  assert y["clean"]["removed"] == {"empty": 1, "gopher_length": 1, "language_other": 1}
  assert y["dedup"]["removed"] == {"copy": 3}  # a copy, a near copy, an image
  assert manifest["documents"] == y["dedup"]["kept"] == 129 - 3 - 3


def test_shards_hold_the_longest_of_copies_in_the_order_of_their_content(made, folder):
  output, manifest = made
  found = [s for name in manifest["shards"] for s in _read(output / name)]
  texts = [s.text for s in found]
  assert len(found) == manifest["documents"] == len(set(texts)) and {s.meta["language"] for s in found} == {"zh", "en"}
  original = [json.loads(line)["text"] for i in range(3) for line in (folder / f"{i}.jsonl").read_text("utf-8").splitlines() if "text" in line]
  longer = next(t for t in original if any(t.startswith(o + "\n") for o in original))
  assert longer.strip() in texts and longer[: longer.rindex("\n")] not in texts
  assert [s.text for s in found if s.images] in ([f"A picture of squares, the one called {n}." for n in ab] for ab in ("ab", "ba"))
  assert [s.messages[1]["content"] for s in found if s.messages] == ["It is a river."]
  assert manifest["licence"] == {"CC0-1.0": 3, "MIT": len(found) - 3} and manifest["images"] == 2


def _read(path):
  shard = sources.read_shard(str(path))
  return [shard[i] for i in range(len(shard))]


@pytest.mark.parametrize("options", [THREE, SENT], ids=["three", "sent"])
def test_bytes_do_not_depend_on_workers(made, folder, options, tmp_path):
  run.run(config(folder), str(tmp_path), options)
  assert digest(tmp_path) == digest(made[0]) and len(digest(tmp_path)) >= 4


def test_shards_do_not_depend_on_blocks(made, folder, tmp_path):
  run.run(config(folder, block_bytes=10**6), str(tmp_path), ONE)
  ours, theirs = digest(tmp_path), digest(made[0])
  assert {n: h for n, h in ours.items() if n.endswith("record")} == {n: h for n, h in theirs.items() if n.endswith("record")}


def _times(output):
  return {p: p.stat().st_mtime_ns for p in sorted((output / "stages").rglob("*.json"))}


def test_a_second_run_does_nothing_and_a_changed_config_only_what_follows(folder, tmp_path):
  c = config(folder)
  first = run.run(c, str(tmp_path), ONE)
  times = _times(tmp_path)
  assert run.run(c, str(tmp_path), ONE) == first and _times(tmp_path) == times
  c.mixture.by = "domain"
  run.run(c, str(tmp_path), ONE)
  changed = {p.parent.name for p, t in _times(tmp_path).items() if times.get(p) != t}
  assert changed == {"select", "write"} and not list(tmp_path.glob("zh-*"))  # shards of the earlier config are gone
  (folder / "chat.jsonl").touch()
  before = _times(tmp_path)
  run.run(c, str(tmp_path), ONE)
  assert {p.parent.name for p, t in _times(tmp_path).items() if before.get(p) != t} == {"ingest", "clean", "dedup", "select", "write"}


def test_a_finished_block_is_not_done_again_and_a_half_written_one_is(tmp_path):
  stage = stages.Stage(f"{tmp_path}/clean", "some key")
  assert not stage.open()
  (tmp_path / "clean" / "b.json.half.part").write_bytes(b"{")
  done = []
  for name in ("a", "a", "b"):
    stages.finish(stage, name, lambda: done.append(name) or {"documents": 1})
  assert done == ["a", "b"] and not stage.open() and not list((tmp_path / "clean").glob("*.part"))
  stages.mark(["b", "a"], stage)
  assert stage.open() and list(stage.counts()) == ["a", "b"]
  assert not stages.Stage(stage.folder, "another key").open() and not (tmp_path / "clean" / "a.json").exists()


def test_killed_at_any_moment_it_goes_on_to_the_same_bytes(made, folder, tmp_path):
  script = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from tests.pipeline import test_prepare as t; t.run.run(t.config({str(folder)!r}), {str(tmp_path)!r}, t.ONE)"
  killed = 0
  for wait_for in ("ingest/000001.json", "clean/000001.json"):
    process = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": str(ROOT)})
    while process.poll() is None and not (tmp_path / "stages" / wait_for).exists():
      time.sleep(0.002)
    killed += process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
  assert killed
  (tmp_path / "stages" / "ingest" / "000000.samples.half.part").write_bytes(b"half")
  run.run(config(folder), str(tmp_path), ONE)
  assert digest(tmp_path) == digest(made[0])


def test_evaluation_sets_and_held_out_pages_stay_apart(folder, tmp_path):
  c = config(folder)
  item = json.loads((folder / "0.jsonl").read_text("utf-8").splitlines()[3])["text"]
  (tmp_path / "exam.jsonl").write_text(json.dumps({"messages": [{"role": "user", "content": "Say: " + item[40:400]}, {"role": "assistant", "content": "a"}]}))
  c.decontaminate = (str(tmp_path / "exam.jsonl"),)
  c.holdout = 2
  manifest = run.run(c, str(tmp_path / "out"), ONE)
  assert manifest["yields"]["clean"]["removed"]["contaminated"] >= 1
  pages = {split: {s.source for name in manifest["shards"] if f"-{split}-" in name for s in _read(tmp_path / "out" / name)} for split in ("train", "test")}
  assert pages["train"] and pages["test"] and not pages["train"] & pages["test"]


def test_a_shard_may_be_an_evaluation_set(folder, tmp_path):
  c = config(folder)
  item = json.loads((folder / "0.jsonl").read_text("utf-8").splitlines()[3])["text"]
  sample_lib.write_shard(str(tmp_path / "exam.array_record"), [sample_lib.Sample("exam", "-", item[40:400])])
  c.decontaminate = (str(tmp_path / "exam.array_record"), "assets/screens-test.array_record")
  assert run.run(c, str(tmp_path / "out"), ONE)["yields"]["clean"]["removed"]["contaminated"] >= 1


def test_a_budget_leaves_out_and_a_plan_packs(folder, tmp_path):
  c = config(folder)
  c.mixture.rule, c.mixture.tokens, c.packing_length, c.max_bytes = "temperature", 20_000, 2048, 800
  manifest = run.run(c, str(tmp_path), ONE)
  assert manifest["groups"]["en"]["share"] + manifest["groups"]["zh"]["share"] == pytest.approx(1)
  assert 12_000 < manifest["tokens"] < 28_000 and manifest["tokens_are"] == "counted"
  plan = json.loads((tmp_path / "packing.json").read_text())["rows"]
  assert {name: sorted(i for row in rows for i in row) for name, rows in plan.items()} == {name: list(range(s["documents"])) for name, s in manifest["shards"].items()}
  assert manifest["packing"]["fill"] > 0.85  # ten rows, two of them the last of a shard
  planned = dict(kind="documents", path=f"{tmp_path}/zh-train-*.array_record", share=1.0, packing="plan", epochs=1)
  batches = list(loader.batches({"prose": planned}, ChatFormat(Tokenizer(), None, 1), pack.PackSpec(1, 2048), 0))
  rows, = (some for name, some in plan.items() if name.startswith("zh-train"))
  assert sorted(b.segment_ids.max() for b in batches) == sorted(map(len, rows))
  assert max(len(s.text.encode()) for name in manifest["shards"] for s in _read(tmp_path / name) if "\n" in s.text) <= 800


def test_a_score_and_a_classifier_of_the_user(folder, tmp_path, monkeypatch):
  (tmp_path / "mine.py").write_text("def score(texts):\n  return [float(len(t) % 2) for t in texts]\ndef label(texts):\n  return ['mine'] * len(texts)\n")
  monkeypatch.syspath_prepend(str(tmp_path))
  c = config(folder, classifier="mine:label")
  c.quality.scorer, c.quality.min_score = "mine:score", 0.5
  manifest = run.run(c, str(tmp_path / "out"), ONE)
  assert set(manifest["domain"]) == {"mine"} and manifest["yields"]["clean"]["removed"]["score"] > 20


@pytest.mark.parametrize("change, reason", [
    (lambda c: [c.sources.__delitem__(name) for name in list(c.sources)], "no sources"), (lambda c: c.quality.update(rules=("gophr",)), "use gopher"), (lambda c: c.mixture.update(rule="unimax"), "needs config.mixture.tokens"),
    (lambda c: c.sources.prose.update(path="/nowhere/*.x"), "no files match"), (lambda c: c.sources.prose.update(kind="doc"), "kind"),
    (lambda c: c.update(max_unreadable=0.0), "cannot be read"), (lambda c: c.update(languages=("xx",)), "no document is left"), (lambda c: c.update(classifier="no.such:thing"), "no function")])
def test_mistakes_are_one_line(folder, tmp_path, change, reason):
  c = config(folder)
  change(c)
  with pytest.raises(ValueError, match=reason) as error:
    run.run(c, str(tmp_path), ONE)
  assert "\n" not in str(error.value)


@pytest.mark.parametrize("path", sorted((ROOT / "configs/data").glob("*.py")), ids=lambda p: p.stem)
def test_shipped_configs_are_possible(path):
  spec = importlib.util.spec_from_file_location(path.stem, path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  c = module.get_config()
  defaults.check(c)
  assert c.name and {s["kind"] for s in c.sources.values()} <= set(read.KINDS) and f"configs/data/{path.name}" in module.__doc__


def test_the_door(folder, tmp_path):
  command = [sys.executable, "-m", "bluelm_jax.prepare", f"--config={ROOT}/configs/data/docs.py:{folder}", f"--output={tmp_path}"]
  env = {**os.environ, "PYTHONPATH": str(ROOT)}
  done = subprocess.run([*command, "--", *ONE], capture_output=True, text=True, env=env)
  assert done.returncode == 0 and "samples" in done.stdout and "clean: " in done.stderr, done.stderr
  assert "<svg" in (tmp_path / "card.html").read_text("utf-8")
  for wrong in (["--config.languges=x"], ["--config.dedup.similarity=2"], ["x"]):
    done = subprocess.run(command + wrong, capture_output=True, text=True, env=env)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and done.stderr.startswith("error: "), done.stderr
