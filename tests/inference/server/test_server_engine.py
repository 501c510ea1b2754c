"""The server with the engine itself: the official client, budgets, images, other weights, clients that leave; and one real process."""

import concurrent.futures
import contextlib
import http.client
import json
import pathlib
import re
import signal
import subprocess
import sys
import time

import cv2
import numpy as np
import pytest

openai = pytest.importorskip("openai")
pytest.importorskip("uvicorn")

from bluelm_jax.inference import conversation
from bluelm_jax.inference.server import run
from tests.inference.server import checkpoint
from tests.inference.server.serving import serving
from tests.inference.server.serving import until
from tests.inference.server.test_server import shown
from tests.inference.server.test_server import uri

ROOT = pathlib.Path(__file__).parents[3]
HI = [{"role": "user", "content": "Hi"}]
CHAT, IDS = "/v1/chat/completions", "/generate"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp("weights")
  checkpoint.write(folder / "first", seed=0)
  checkpoint.write(folder / "second", seed=1)
  checkpoint.write(folder / "wider", mlp_dim=128)
  return folder


@pytest.fixture(scope="module")
def server(folder):
  with serving(conversation.Speaker(folder / "first", slots=8, pages=96), root=str(folder)) as found:
    yield found
    until(lambda: found.service.in_flight == 0)
    stats = found.service.worker.stats
    assert stats["pages_free"] == stats["pages_total"] == 96 and stats["running"] == stats["waiting"] == 0


@pytest.fixture(scope="module")
def client(server):
  with openai.OpenAI(base_url=f"http://127.0.0.1:{server.port}/v1", api_key="none", max_retries=0) as found:
    yield found


def ids(server, **more):
  status, found = server.post(IDS, {"prompt_token_ids": list(range(50, 90)), "max_tokens": 12, "temperature": 0, **more})
  assert status == 200, found
  return found["samples"]


def test_the_official_client(client):
  ask = lambda **more: client.chat.completions.create(model="tiny", messages=HI, max_tokens=16, **{"temperature": 0, **more})
  whole = ask(n=2, logprobs=True, top_logprobs=1)
  first, second = whole.choices
  assert first.message.content == second.message.content != "" and whole.usage.completion_tokens == 32
  assert all(t.logprob == t.top_logprobs[0].logprob for t in first.logprobs.content)  # greedy is likeliest
  assert "".join(c.choices[0].delta.content or "" for c in ask(stream=True)) == first.message.content
  drawn = [ask(temperature=1.0, seed=s).choices[0].message.content for s in (1, 1, 2)]
  assert drawn[0] == drawn[1] != drawn[2]
  part = first.message.content[3:6]
  assert ask(stop=[part]).choices[0].message.content == first.message.content.split(part)[0]
  with pytest.raises(openai.BadRequestError, match="exceed the context of 512"):
    client.chat.completions.create(model="tiny", messages=HI, max_tokens=511)


def test_a_budget_bounds_the_thought(server):
  for budget in (0, 5):
    status, found = server.post(CHAT, {"messages": HI, "thinking_token_budget": budget, "max_tokens": 40, "seed": 3, "n": 3})
    assert status == 200 and found["usage"]["reasoning_tokens"] <= 3 * (budget + 2)
    for choice in found["choices"]:
      assert choice["message"]["content"] and not re.search("</?think>", json.dumps(choice["message"]))


def test_a_begun_thought_is_closed_in_time(server):
  """By ids that end in an opened thought, which a random model seldom closes; a number beyond all bounds is no bound."""
  think = server.service.speaker.think
  for budget, thought in ((0, 0), (5, 5), (10**12, None)):
    status, found = server.post("/generate", {
        "prompt_token_ids": [5, 6, think.open_id], "thinking": True, "thinking_token_budget": budget, "max_tokens": 30, "top_k": 10**12, "temperature": 0})
    (sample,) = found["samples"]
    at = sample["ids"].index(think.close_id)
    assert status == 200 and sample["phases"] == ["think"] * (at + 1) + ["answer"] * (29 - at)
    assert thought is None or (at == thought and sample["forced"] == [i == at for i in range(30)])


def test_an_image_is_seen(server):
  pixels = np.random.default_rng(0).integers(0, 255, (80, 60, 3), np.uint8)
  pictures = [cv2.imencode(".png", p)[1].tobytes() for p in (pixels, pixels // 4, pixels)]
  asked = [{"messages": shown(uri(data)), "temperature": 0, "max_tokens": 1, "logprobs": True} for data in pictures]
  one, other, again = (server.post(CHAT, body)[1]["choices"][0]["logprobs"]["content"][0]["logprob"] for body in asked)
  assert one == pytest.approx(again, abs=1e-4) and abs(one - other) > 1e-3


def test_many_at_once(server):
  alone = ids(server)[0]["ids"]
  bodies = [{"messages": HI, "stream": i % 2 == 0, "n": 1 + i % 3, "max_tokens": 20, "thinking": i % 5 == 0} for i in range(15)]
  with concurrent.futures.ThreadPoolExecutor(16) as pool:
    beside = pool.submit(ids, server)
    answers = list(pool.map(lambda body: server.ask("POST", CHAT, body), bodies))
  assert beside.result()[0]["ids"] == alone
  for body, (status, _, data) in zip(bodies, answers):
    assert status == 200 and len(re.findall(rb'"finish_reason":"(?:stop|length)"', data)) == body["n"]


def test_a_client_that_leaves_frees_its_pages(server):
  connection = http.client.HTTPConnection("127.0.0.1", server.port)
  body = json.dumps({"messages": HI, "stream": True, "max_tokens": 500, "n": 4})
  connection.request("POST", CHAT, body, {"Content-Type": "application/json"})
  response = connection.getresponse()
  response.read(300)
  made = server.service.worker.stats["steps"]
  response.close()
  connection.close()
  until(lambda: not server.engine.busy)
  assert server.service.worker.stats["steps"] - made < 250  # it had 500 to go


def test_other_weights(server, folder):
  before = ids(server)[0]
  assert set(before["versions"]) == {0}
  bad = [("wider", 400, "another model"), ("none", 400, "no checkpoint"), ("first/model.json", 400, "no checkpoint"), ("..", 403, "outside"), ("/etc", 403, "outside")]
  for name, status, words in bad:
    found = server.admin("update_weights", {"checkpoint": name})
    assert found[0] == status and words in found[1]["error"]["message"]
  with concurrent.futures.ThreadPoolExecutor() as pool:
    server.admin("pause")
    asked = pool.submit(ids, server, n=2)
    until(lambda: server.engine.busy)
    assert server.admin("update_weights", {"checkpoint": "second"}) == (200, {"paused": True, "version": 1})
    server.admin("continue")
    other = asked.result()[0]
  assert set(other["versions"]) == {1} and other["ids"] != before["ids"]
  programs = server.service.worker.stats["programs"]
  assert server.admin("update_weights", {"checkpoint": str(folder / "first"), "version": 7})[1]["version"] == 7
  again = ids(server)[0]
  assert again["ids"] == before["ids"] and set(again["versions"]) == {7} and server.service.worker.stats["programs"] == programs


def test_a_port_in_use(server):
  with pytest.raises(ValueError, match="cannot listen on 127.0.0.1:.*; choose another"):
    run.listen("127.0.0.1", server.port)


def test_a_process_answers_and_drains(folder):
  command = [sys.executable, "-m", "bluelm_jax.serve", f"--checkpoint={folder / 'first'}", "--port=0", "--name=mine"]
  command += ["--limit_new_tokens=60", "--wrap_up=So:", "--slots=4", "--kv_dtype=int8"]
  process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
  try:
    port = int(re.fullmatch(r"serving mine at http://127.0.0.1:(\d+)\n", process.stderr.readline())[1])
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    with contextlib.closing(connection):
      connection.request("POST", CHAT, json.dumps({"messages": HI, "stream": True, "model": "mine"}), {"Content-Type": "application/json"})
      response = connection.getresponse()
      response.read(1)
      process.send_signal(signal.SIGTERM)
      time.sleep(0.2)
      with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)) as late:
        late.request("POST", CHAT, json.dumps({"messages": HI}), {"Content-Type": "application/json"})
        assert late.getresponse().status == 503
      assert response.read().endswith(b"data: [DONE]\n\n")
    assert process.wait(60) == 0 and process.stderr.read() == ""
  finally:
    process.kill()
