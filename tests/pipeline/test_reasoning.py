"""Reasoning data through the whole pipeline: a solver that errs, an endpoint that fails, stops, and what the loader makes of the shards."""

import collections
import contextlib
from http import server
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

pytest.importorskip("apache_beam")
pytest.importorskip("math_verify")

from bluelm_jax.data import loader
from bluelm_jax.data import pack
from bluelm_jax.data import sources
from bluelm_jax.data.chat import ChatFormat
from bluelm_jax.data.tasks import reasoning
from bluelm_jax.data.tokenizer import Tokenizer
from bluelm_jax.pipeline import defaults
from bluelm_jax.pipeline import run
from bluelm_jax.pipeline.reasoning import demo
from bluelm_jax.pipeline.reasoning import endpoint
from bluelm_jax.pipeline.reasoning import generator
from tests.pipeline.test_prepare import ONE
from tests.pipeline.test_prepare import THREE
from tests.pipeline.test_prepare import digest

ROOT = pathlib.Path(__file__).parents[2]


def config(**more):
  c = defaults.dataset()
  c.name = "test"
  c.sources.tasks = dict(kind="tasks", path="*", licence="MIT", count=12)
  c.block_bytes, c.mixture.by = 6000, "style"  # several blocks
  c.reasoning.generator.function = "bluelm_jax.pipeline.reasoning.demo:solve"
  c.reasoning.rewrite, c.reasoning.long_tokens, c.reasoning.samples = ("paraphrase", "translate", "numbers"), 40, 6
  c.update(more)
  return c


def samples(output, manifest):
  return [s for name in manifest["shards"] for shard in [sources.read_shard(str(output / name))] for s in (shard[i] for i in range(len(shard)))]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
  output = tmp_path_factory.mktemp("made")
  return output, run.run(config(), str(output), ONE)


def test_every_path_and_question_is_accounted_for(made):
  _, manifest = made
  y = manifest["yields"]["reasoning"]
  for found in (y, *y["kinds"].values()):
    assert found["paths"] == sum(found["removed"].values()) + found["short"] + found["long"]
    assert found["questions"] == sum(found["outcomes"].values()) and found["paths"] == 6 * found["questions"]
    labelled = sum(found["outcomes"].get(k, 0) for k in ("solved", "unsolved"))
    assert sum(found["pass_rates"]) == labelled
  assert y["questions"] == y["given"] + sum(y["rewritten"].values()) and set(y["rewritten"]) == {"paraphrase", "translate", "numbers"}
  assert {"wrong", "near_copy", "surplus", "thought_unclosed", "thought_missing", "thought_repeated", "answer_missing", "language_other"} <= set(y["removed"])
  assert manifest["yields"]["rewrite"]["removed"]["rewrite_numbers"] and {"swap", "story, numbers", "parity, translate"} <= set(y["kinds"])
  assert manifest["documents"] == y["short"] + y["long"] == manifest["yields"]["judge"]["kept"]


def test_samples_say_how_they_came_about(made):
  output, manifest = made
  found = samples(output, manifest)
  assert {name.split("-")[0] for name in manifest["shards"]} == {"short", "long"}
  counts = collections.Counter(s.meta["question_id"] for s in found)
  assert max(counts.values()) == 2  # config.reasoning.keep
  for s in found:
    user, assistant = s.messages
    assert user["role"] == "user" and "\\boxed" in user["content"] and assistant["reasoning_content"] and "<think>" not in assistant["content"]
    assert s.meta["checker"] == "number" and s.meta["generator"].endswith("demo:solve") and 0 < s.meta["pass_rate"] <= 1 and s.licence == "MIT" and s.meta["ability"] == "reasoning"
    assert s.meta["voted"] == s.meta["question_id"].endswith("/numbers")
  assert {s.meta["language"] for s in found} == {"en", "zh"}


def test_the_card_shows_yields(made):
  text = (made[0] / "card.html").read_text("utf-8")
  assert "Questions by share of right paths" in text and "story, numbers" in text and "thought_unclosed" in text


def test_bytes_do_not_depend_on_workers_or_blocks(made, tmp_path):
  run.run(config(), str(tmp_path / "three"), THREE)
  assert digest(tmp_path / "three") == digest(made[0]) and len(digest(made[0])) >= 4
  run.run(config(block_bytes=10**6), str(tmp_path / "one"), ONE)
  ours, theirs = digest(tmp_path / "one"), digest(made[0])
  assert {n: h for n, h in ours.items() if n.endswith("record")} == {n: h for n, h in theirs.items() if n.endswith("record")}


def test_the_loader_packs_short_and_long_for_their_epochs(made):
  output, manifest = made
  parts = {style: dict(kind="conversations", path=f"{output}/{style}-train-*.array_record", share=1.0, epochs=epochs) for style, epochs in (("short", 3), ("long", 9))}
  chat = ChatFormat(Tokenizer(), None, 0)
  found = list(loader.mixture(parts, chat, 1024, 0))
  counts = collections.Counter(e.source for e in found)  # sources are numbered in the order of their names
  y = manifest["yields"]["reasoning"]
  assert counts == {0: 9 * y["long"], 1: 3 * y["short"]}
  batch = next(loader.batches(parts, chat, pack.PackSpec(2, 1024, 1), 0))
  assert batch.loss_weights.sum() > 500 and (batch.segment_ids > 0).mean() > 0.8


# Endpoints.


class Endpoint(server.BaseHTTPRequestHandler):
  """Answers as the demonstration's solver; fails as its server's `faults` say, a status and how often."""

  def do_POST(self):
    body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
    s = self.server
    with s.lock:
      s.requests.append((json.dumps(body["messages"]), self.headers["Authorization"], self.path))
      fault = s.faults.pop(0) if s.faults else 0
    time.sleep(s.delay)
    if fault == "cut":
      self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n{")
      return
    refused = s.refuses and re.search(s.refuses, json.dumps(body["messages"], ensure_ascii=False))
    if fault or refused:
      return self._send(fault or 400, {"error": "not this one"})
    with s.lock:
      s.served.append(json.dumps(body["messages"]))
    texts = demo.solve([body["messages"]], body["n"] if s.knows_n else 1)[0]
    self._send(200, {"choices": [{"message": _split(text) if s.splits else {"content": text}, "finish_reason": "stop"} for text in texts]})

  def _send(self, status, value):
    data = json.dumps(value).encode()
    self.send_response(status)
    if status == 429:
      self.send_header("Retry-After", "0.01")
    self.send_header("Content-Length", str(len(data)))
    self.end_headers()
    with contextlib.suppress(BrokenPipeError):
      self.wfile.write(data)

  def log_message(self, *_):
    pass


def _split(text):
  thought = re.match("<think>(.*?)</think>", text, re.DOTALL)
  return {"content": text[thought.end():], "reasoning_content": thought[1]} if thought else {"content": text}


@pytest.fixture
def served():
  s = server.ThreadingHTTPServer(("127.0.0.1", 0), Endpoint)
  s.lock, s.requests, s.served, s.faults, s.delay, s.refuses, s.knows_n, s.splits = threading.Lock(), [], [], [], 0.0, "", True, False
  thread = threading.Thread(target=s.serve_forever, args=(0.02,), daemon=True)
  thread.start()
  yield s
  s.shutdown()
  s.server_close()


def asking(served, **more):
  g = defaults.reasoning().generator
  g.update({"base_url": f"http://127.0.0.1:{served.server_port}/v1", "model": "m", "backoff": 0.01, "retries": 3, "concurrency": 4, **more})
  return g.to_dict()


def prompts(count):
  rng = np.random.default_rng(0)
  return [[{"role": "user", "content": reasoning.make(rng).question}] for _ in range(count)]


def texts(answers):
  return [[r["text"] for r in replies] for replies in answers.replies]


def test_an_endpoint_answers_and_is_not_asked_again(served, tmp_path, monkeypatch):
  monkeypatch.setenv("MY_KEY", "secret")
  asked = prompts(9)
  first = generator.ask(asking(served, api_key_env="MY_KEY"), asked, 3, str(tmp_path))
  assert texts(first) == demo.solve(asked, 3) and len(served.requests) == 9
  assert {r[1:] for r in served.requests} == {("Bearer secret", "/v1/chat/completions")}
  again = generator.ask(asking(served, concurrency=1, timeout=9.0), asked, 3, str(tmp_path))  # patience is no part of an answer
  assert again == first and len(served.requests) == 9
  generator.ask(asking(served, temperature=0.1), asked[:1], 3, str(tmp_path))
  assert len(served.requests) == 10
  assert not [p for p in tmp_path.rglob("*.json") if b"secret" in p.read_bytes()]


def test_more_replies_are_asked_for_alone(served, tmp_path):
  served.knows_n = False  # one choice, whatever n
  asked = prompts(2)
  generator.ask(asking(served), asked, 2, str(tmp_path))
  assert len(served.requests) == 4
  found = generator.ask(asking(served), asked, 5, str(tmp_path))
  assert len(served.requests) == 10 and [len(r) for r in found.replies] == [5, 5]


def test_faults_pass_with_patience(served, tmp_path):
  served.faults = [429, 503, "cut", 500]
  asked = prompts(4)
  assert texts(generator.ask(asking(served, retries=4), asked, 2, str(tmp_path))) == demo.solve(asked, 2)
  assert len(served.requests) == 8


def test_an_endpoint_that_does_not_recover_stops_the_run_and_keeps_what_there_is(served, tmp_path):
  asked = prompts(6)
  generator.ask(asking(served), asked[:3], 2, str(tmp_path))
  served.faults = [503] * 100
  with pytest.raises(ValueError, match="no answer in 3 tries .503.*run again") as error:
    generator.ask(asking(served, retries=2), asked, 2, str(tmp_path))
  assert "\n" not in str(error.value)
  served.faults, before = [], len(served.served)
  generator.ask(asking(served), asked, 2, str(tmp_path))
  assert len(served.served) == before + 3


def test_a_slow_answer_is_given_up(served, tmp_path):
  served.delay = 1.0
  with pytest.raises(ValueError, match="no answer in 1 tries .*Timeout"):
    generator.ask(asking(served, timeout=0.1, retries=0), prompts(1), 1, str(tmp_path))


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_wrong_key_or_model_stops_at_once(served, tmp_path, status):
  served.faults = [status] * 9
  with pytest.raises(ValueError, match=f"answers {status}.*check base_url, model"):
    generator.ask(asking(served, concurrency=1), prompts(1), 1, str(tmp_path))
  assert len(served.requests) == 1


def test_a_refused_prompt_is_left_out_and_all_of_them_stop_the_run(served, tmp_path):
  asked = prompts(5)
  served.refuses = re.escape(json.dumps(asked[2][0]["content"], ensure_ascii=False).strip('"'))
  found = generator.ask(asking(served), asked, 1, str(tmp_path))
  assert list(found.refused) == [2] and "400" in found.refused[2] and [len(r) for r in found.replies] == [1, 1, 0, 1, 1]
  served.refuses = "."
  with pytest.raises(ValueError, match="refuses every prompt"):
    generator.ask(asking(served), prompts(7)[5:], 1, str(tmp_path))


def test_a_thought_in_a_field_of_its_own(served):
  served.splits = True
  asked = prompts(1)
  thought = [re.match("<think>(.*?)</think>", t, re.DOTALL) for t in demo.solve(asked, 4)[0]]
  assert [r["thought"] for r in endpoint.ask(asking(served), asked[0], 4)] == [t[1] if t else "" for t in thought]


def over_http(c, served):
  c.reasoning.generator.update(dict(asking(served), extra={}))
  c.reasoning.generator.function = ""
  return c


def test_killed_in_the_midst_of_sampling_no_prompt_is_answered_twice(served, made, tmp_path):
  served.delay = 0.02
  script = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from tests.pipeline import test_reasoning as t; t.killable({served.server_port}, {str(tmp_path)!r})"
  process = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": str(ROOT)})
  sampled = tmp_path / "stages" / "sample"
  while process.poll() is None and not (sampled.is_dir() and len(list((tmp_path / "answers").rglob("*.json"))) > 120):
    time.sleep(0.005)
  assert process.poll() is None and not (sampled / "done.json").exists()
  process.send_signal(signal.SIGKILL)
  process.wait()
  time.sleep(0.2)  # what was under way is over
  kept = len(list((tmp_path / "answers").rglob("*.json")))
  before = len(served.served)
  assert before - kept <= 4  # answered, and lost with the process: no more than were under way
  manifest = run.run(over_http(config(), served), str(tmp_path), ONE)
  counts = collections.Counter(served.served)
  assert kept > 120 and sum(counts.values()) - len(counts) == before - kept
  theirs = samples(made[0], made[1])
  assert [(s.messages, s.meta["pass_rate"]) for s in samples(tmp_path, manifest)] == [(s.messages, s.meta["pass_rate"]) for s in theirs]


def killable(port, output):
  run.run(over_http(config(), type("Served", (), {"server_port": port})), output, ONE)


def test_a_changed_rule_asks_nothing(served, tmp_path):
  c = over_http(config(), served)
  c.sources.tasks.count = 4
  first = run.run(c, str(tmp_path), ONE)
  before = len(served.requests)
  c.reasoning.pass_rate, c.reasoning.keep = (0.7, 0.9), 1
  second = run.run(c, str(tmp_path), ONE)
  outcomes = second["yields"]["reasoning"]["outcomes"]
  assert len(served.requests) == before and outcomes["too_easy"] and outcomes["too_hard"] and second["documents"] < first["documents"]
  assert all(0.7 <= s.meta["pass_rate"] <= 0.9 for s in samples(tmp_path, second))


# Users' questions.


def write(path, rows):
  path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows), "utf-8")


def unlabelled(folder, count):
  """Writes questions without answers, and returns question -> answer."""
  rng = np.random.default_rng(1)
  problems = {p.question: p.answer for p in (reasoning.make(rng) for _ in range(count))}
  write(folder / "q.jsonl", [{"question": q} for q in problems])
  return problems


def test_a_vote_finds_labels_and_most_are_right(tmp_path):
  truth = unlabelled(tmp_path, 100)
  c = config()
  del c.sources["tasks"]
  c.sources.mine = dict(kind="questions", path=f"{tmp_path}/*.jsonl", licence="MIT", check="number")
  c.reasoning.rewrite, c.reasoning.samples, c.reasoning.generator.function = (), 8, "bluelm_jax.pipeline.reasoning.demo:worse"
  manifest = run.run(c, str(tmp_path / "out"), ONE)
  outcomes = manifest["yields"]["reasoning"]["outcomes"]
  assert outcomes["no_majority"] and outcomes["tie"] and outcomes["solved"] > 50
  replies = [r["text"] for path in (tmp_path / "out" / "answers").rglob("*.json") for r in json.loads(path.read_text())]
  assert len(replies) == 8 * len(truth)
  found = samples(tmp_path / "out", manifest)
  right = np.mean([s.meta["answer"] == truth[s.messages[0]["content"].split("\n")[0]] for s in found])
  alone = np.mean([f"{{{a}}}" in text for q, a in truth.items() for text in demo.worse([[{"role": "user", "content": q}]], 8)[0] if "boxed" in text])
  assert all(s.meta["voted"] for s in found) and alone < 0.75 and right > 0.92  # tests/bench/reasoning.py has the figures


def test_copies_and_exams_are_not_asked(served, tmp_path):
  problems = [reasoning.make(np.random.default_rng(i), "swap", steps=6) for i in range(3)]
  rows = [{"question": p.question + " Please say it.", "answer": p.answer} for p in problems]
  write(tmp_path / "q.jsonl", rows + rows[:1] + [{"question": "3 + 4 = x. x?", "answer": "7"}, {"question": "3 - 4 = x. x?", "answer": "-1"}])
  write(tmp_path / "exam.json", [])
  (tmp_path / "exam.json").write_text(json.dumps([{"question": rows[1]["question"], "level": 3}]))
  c = over_http(config(), served)
  del c.sources["tasks"]
  c.sources.mine = dict(kind="questions", path=f"{tmp_path}/*.jsonl", licence="MIT", language="en")
  c.decontaminate, c.reasoning.rewrite = (str(tmp_path / "exam.json"),), ()
  y = run.run(c, str(tmp_path / "out"), ONE)["yields"]
  assert y["clean"]["removed"] == {"contaminated": 1} and y["dedup"]["removed"] == {"copy": 1} and y["reasoning"]["questions"] == 4
  assert len(set(served.served)) == 4 and not any(rows[1]["question"] in r for r in served.served)


def test_puzzles_keep_their_spaces(served, tmp_path):
  write(tmp_path / "q.jsonl", [{"question": "Swap places in 12345: A12; Result?", "answer": "21345"}])
  c = over_http(config(), served)
  c.sources.tasks.update(dict(path="swap", count=1))
  run.run(c, str(tmp_path / "out"), ONE)
  pytest.importorskip("reasoning_gym")
  c = over_http(config(), served)
  c.sources.gym = dict(kind="reasoning_gym", path="binary_matrix", licence="Apache-2.0", count=2)
  del c.sources["tasks"]
  c.reasoning.rewrite = ()
  with pytest.raises(ValueError, match="no document is left"):  # the solver knows nothing of these
    run.run(c, str(tmp_path / "gym"), ONE)
  from bluelm_jax.pipeline.reasoning import generated

  texts = [generated.gym_item(dict(task="binary_matrix", level=-1, seed=0, size=2, index=i))["question"].strip() for i in range(2)]
  assert all(any(json.loads(r)[0]["content"].startswith(t) for r in served.served) for t in texts)


def nothing(prompts, n):
  return []


@pytest.mark.parametrize("change, reason", [
    (dict(function=""), "needs a function"), (dict(base_url="http://x"), "needs a function"), (dict(api_key_env="NO_SUCH_KEY"), "no NO_SUCH_KEY"), (dict(concurrency=0), "concurrency is 0"),
    (dict(function="no.such:thing"), "no function 'no.such:thing'"), (dict(function="tests.pipeline.test_reasoning:nothing"), "must give 1 texts")])
def test_mistakes_about_the_generator_are_one_line(tmp_path, change, reason):
  c = config()
  c.sources.tasks.count = 1
  c.reasoning.generator.update(change)
  with pytest.raises(ValueError, match=reason) as error:
    run.run(c, str(tmp_path), ONE)
  assert "\n" not in str(error.value)


@pytest.mark.parametrize("change, reason", [
    (lambda c: c.reasoning.update(rewrite=("rephrase",)), "rewrite is"), (lambda c: c.reasoning.update(pass_rate=(0.9, 0.1)), "pass_rate is"), (lambda c: c.reasoning.update(agreement=0.0), "agreement is"),
    (lambda c: c.sources.tasks.update(check="number"), "has check, which is for"), (lambda c: c.sources.update(prose=dict(kind="text", path="x", licence="MIT")), "make two data sets"),
    (lambda c: c.sources.__delitem__("tasks") or c.sources.update(prose=dict(kind="text", path="x", licence="MIT")), "are for sources of kind questions"), (lambda c: c.sources.tasks.update(path="swop"), "no task 'swop'")])
def test_mistakes_in_the_config_are_one_line(tmp_path, change, reason):
  c = config()
  change(c)
  with pytest.raises(ValueError, match=reason) as error:
    run.run(c, str(tmp_path), ONE)
  assert "\n" not in str(error.value)
