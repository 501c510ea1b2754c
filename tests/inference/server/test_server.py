"""The server's own part: what it understands, refuses, and does with clients that leave, with an engine that follows a script."""

import asyncio
import base64
import concurrent.futures
import http.client
import json
import socket
import threading

import cv2
import numpy as np
import pytest

openai = pytest.importorskip("openai")
pytest.importorskip("uvicorn")

from bluelm_jax.inference.server.limits import Limits
from tests.inference.server import fake
from tests.inference.server.serving import serving
from tests.inference.server.serving import until

HI = [{"role": "user", "content": "Hi"}]
CHAT, PLAIN, IDS = "/v1/chat/completions", "/v1/completions", "/generate"


def uri(data: bytes, kind: str = "image/png") -> str:
  return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def png(height: int = 40, width: int = 30) -> bytes:
  return cv2.imencode(".png", np.full((height, width, 3), 200, np.uint8))[1].tobytes()


def shown(url, **more):
  return [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url, **more}}, {"type": "text", "text": "What?"}]}]


def says(messages):
  return {"messages": messages}


ASK = says(HI)
BAD = [
    (CHAT, b"{", 400, "not JSON"),
    (CHAT, b"\xff\xfe", 400, "not JSON"),
    (CHAT, b"[" * 100_000, 400, "not JSON"),
    (CHAT, [], 400, "send a JSON object"),
    (CHAT, b'{"messages": [{"role": "user", "content": "\\ud800"}]}', 400, "surrogate"),
    (CHAT, b'{"\\ud800": 1, "messages": [{}]}', 400, "unknown"),
    (CHAT, {}, 400, "messages is missing"),
    (CHAT, b'{"temperature": 1' + b"0" * 400 + b"}", 400, "temperature must be a number"),
    (CHAT, {**says([{"role": "user", "content": "Hi"}]), "temperature": 1e250}, 400, "temperature must be 0 or from"),
    ("/v1/completions", {"prompt": ["a"] * 65}, 400, "holds 65 prompts, over"),
    (CHAT, says([]), 400, "empty"),
    (CHAT, {"messages": "Hi"}, 400, "messages must be a list, not a text"),
    (CHAT, says([3]), 400, "messages[0] must be an object"),
    (CHAT, says([{"role": "tool", "content": "x"}]), 400, "messages[0].role = 'tool'"),
    (CHAT, says([{"role": "user", "content": 5}]), 400, "messages[0].content"),
    (CHAT, says([{**HI[0], "name": "me"}]), 400, "messages[0].name is unknown"),
    (CHAT, says([*HI, {"role": "assistant", "content": "x"}]), 400, "ends with the assistant"),
    (CHAT, {**ASK, "model": "gpt"}, 404, "no model 'gpt' here; ask for 'tiny'"),
    (CHAT, {**ASK, "warmth": 1}, 400, "warmth is unknown"),
    (CHAT, {**ASK, "tools": [{}]}, 400, "tools = [{}] is not supported"),
    (CHAT, {**ASK, "logit_bias": {"5": 1}}, 400, "logit_bias"),
    (CHAT, {**ASK, "frequency_penalty": 0.1}, 400, "frequency_penalty"),
    (CHAT, {**ASK, "response_format": {"type": "json_object"}}, 400, "response_format"),
    (CHAT, {**ASK, "store": 0}, 400, "store"),
    (CHAT, {**ASK, "temperature": -1}, 400, "temperature"),
    (CHAT, b'{"messages": [], "temperature": NaN}', 400, "temperature must be a number"),
    (CHAT, {**ASK, "temperature": True}, 400, "temperature must be a number, not true or false"),
    (CHAT, {**ASK, "top_k": 1.5}, 400, "top_k"),
    (CHAT, {**ASK, "n": 0}, 400, "n must be at least 1"),
    (CHAT, {**ASK, "n": 9}, 400, "over 8"),
    (CHAT, {**ASK, "seed": 2**40}, 400, "seed"),
    (CHAT, {**ASK, "stop": ["a"] * 5}, 400, "at most 4"),
    (CHAT, {**ASK, "stop": ""}, 400, "stop"),
    (CHAT, {**ASK, "max_tokens": 0}, 400, "max_tokens"),
    (CHAT, {**ASK, "max_tokens": 121}, 400, "over 120"),
    (CHAT, {**ASK, "max_tokens": 5, "max_completion_tokens": 6}, 400, "give one of them"),
    (CHAT, {**ASK, "top_logprobs": 3}, 400, "needs logprobs"),
    (CHAT, {**ASK, "logprobs": True, "top_logprobs": 21}, 400, "from 0 to 20"),
    (CHAT, {**ASK, "stream_options": {}}, 400, "needs stream"),
    (CHAT, {**ASK, "stream": True, "stream_options": {"x": 1}}, 400, "stream_options.x"),
    (CHAT, {**ASK, "thinking": False, "thinking_token_budget": 5}, 400, "needs thinking"),
    (CHAT, {**ASK, "thinking_token_budget": -1}, 400, "0 or more"),
    (CHAT, {**ASK, "thinking": True, "chat_template_kwargs": {"enable_thinking": False}}, 400, "differ"),
    (CHAT, {**ASK, "chat_template_kwargs": {"date": "x"}}, 400, "chat_template_kwargs.date"),
    (CHAT, says([{"role": "user", "content": "a" * 5001}]), 400, "over 5000 characters"),
    (CHAT, says([{"role": "user", "content": "&~" * 200}]), 400, "tokens, over 300"),
    (CHAT, says(shown("http://127.0.0.1/x.png")), 400, "not fetched"),
    (CHAT, says(shown("file:///etc/passwd")), 400, "not fetched"),
    (CHAT, says(shown("data:image/svg+xml,<svg/>")), 400, "not fetched"),
    (CHAT, says(shown("data:image/png;base64,@@@")), 400, "is not base64"),
    (CHAT, says(shown(uri(b"GIF89a"))), 400, "not a readable image"),
    (CHAT, says(shown(uri(png()[:60]))), 400, "image 1"),
    (CHAT, says(shown(uri(png(301, 300)))), 400, "image 1 is 300x301 pixels; scale it to at most 16384 a side and 0.09 megapixels"),
    (CHAT, says(shown(uri(bytes(100_100)))), 400, "over 100000 bytes"),
    (CHAT, says(shown(uri(png())) * 3), 400, "over 2 images"),
    (CHAT, says(shown(uri(png()), detail="high")), 400, "detail"),
    (CHAT, says([{**shown(uri(png()))[0], "role": "system"}]), 400, "in a user's message"),
    (CHAT, b" " * (2 << 20), 413, "over 1048576 bytes"),
    (PLAIN, {}, 400, "prompt"),
    (PLAIN, {"prompt": ""}, 400, "empty"),
    (PLAIN, {"prompt": [[1, True]]}, 400, "token ids"),
    (PLAIN, {"prompt": [5, 10**6]}, 400, "token ids"),
    (PLAIN, {"prompt": "x", "echo": True}, 400, "echo"),
    (PLAIN, {"prompt": "x", "best_of": 2}, 400, "best_of"),
    (PLAIN, {"prompt": ["x"] * 9}, 400, "over 8"),
    (IDS, {"prompt_token_ids": []}, 400, "empty"),
    (IDS, {"prompt_token_ids": [-1]}, 400, "token ids"),
    (IDS, {"prompt_token_ids": [5], "stop": "x"}, 400, "stop is unknown"),
]


@pytest.fixture(scope="module")
def server():
  limits = Limits(
      body_bytes=1 << 20, images=2, image_bytes=100_000, image_pixels=90_000, text_characters=5000, prompt_tokens=300, new_tokens=120, samples=8)
  with serving(fake.speaker(), limits) as found:
    yield found


@pytest.fixture(scope="module")
def client(server):
  with openai.OpenAI(base_url=f"http://127.0.0.1:{server.port}/v1", api_key="none", max_retries=0) as found:
    yield found


def test_a_chat_answer(client):
  found = client.chat.completions.create(
      model="tiny", messages=HI, n=2, seed=1, top_p=0.9, logprobs=True, top_logprobs=2, extra_body={"thinking": True})
  assert [c.index for c in found.choices] == [0, 1]
  for choice in found.choices:
    assert (choice.message.content, choice.message.reasoning_content, choice.finish_reason) == (fake.ANSWER, fake.THOUGHT, "stop")
    text = b"".join(bytes(t.bytes) if t.bytes else b"?" for t in choice.logprobs.content).decode()
    assert text.startswith("Hello ") and text.endswith("(500,060) and (100,200)(300,400).")
    assert [(t.logprob, len(t.top_logprobs)) for t in choice.logprobs.content[:1]] == [(-0.5, 2)]
    assert choice.logprobs.content[0].top_logprobs[1].logprob == -9999  # JSON has no infinity
  usage, one = found.usage, len(choice.logprobs.content) + 1  # the end token
  thought = usage.completion_tokens_details.reasoning_tokens
  assert usage.prompt_tokens > 2 and usage.completion_tokens == 2 * one + thought and usage.reasoning_tokens == thought >= 2 * 6
  assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens


def test_a_chat_answer_in_pieces(client):
  stream = client.chat.completions.create(
      model="tiny", messages=HI, stream=True, stop=["nowhere", " and ("], logprobs=True, stream_options={"include_usage": True},
      extra_body={"thinking_token_budget": 50})
  chunks = list(stream)
  *pieces, usage = chunks
  deltas = [c.choices[0].delta for c in pieces]
  assert deltas[0].role == "assistant" and all(len(c.choices) == 1 for c in pieces)
  answer = "".join(d.content or "" for d in deltas)
  assert answer == fake.ANSWER[: fake.ANSWER.index(" and (")]  # cut before the stop text, which comes in several tokens
  assert "".join(getattr(d, "reasoning_content", None) or "" for d in deltas) == fake.THOUGHT
  assert [c.choices[0].finish_reason for c in pieces if c.choices[0].finish_reason] == ["stop"] == [pieces[-1].choices[0].finish_reason]
  assert usage.choices == [] and 0 < usage.usage.reasoning_tokens < usage.usage.completion_tokens
  told = sum(len(c.choices[0].logprobs.content) for c in pieces if c.choices[0].logprobs)
  assert told == usage.usage.completion_tokens - usage.usage.reasoning_tokens
  assert not any("\ufffd" in (d.content or "") for d in deltas)


@pytest.mark.parametrize("stream", [False, True])
def test_a_choice_at_its_stop_text_draws_no_more(server, client, stream):
  engine = server.engine
  engine.detour, engine.cancelled, engine.pace = "Let me see and see again. ", [], 0.01
  try:
    found = client.chat.completions.create(model="tiny", messages=HI, n=2, stop=" and (", stream=stream)
    said = [c.message.content for c in found.choices] if not stream else [
        "".join(p.choices[0].delta.content or "" for p in pieces) for pieces in _by_choice(found, 2)]
  finally:
    detour, engine.detour, engine.pace = engine.detour, "", 0.0
  answer = fake.ANSWER[: fake.ANSWER.index(" and (")]
  assert said == [answer, detour + answer]
  assert [sample for _, sample in engine.cancelled] == [0]


def _by_choice(pieces, n):
  pieces = list(pieces)
  return [[p for p in pieces if p.choices[0].index == i] for i in range(n)]


def test_lengths_and_defaults(server, client):
  short = client.chat.completions.create(model="tiny", messages=HI, max_completion_tokens=3).choices[0]
  assert (short.finish_reason, short.message.content, hasattr(short.message, "reasoning_content")) == ("length", "Hell", False)
  template = client.chat.completions.create(model="tiny", messages=HI, extra_body={"chat_template_kwargs": {"enable_thinking": True}})
  assert template.choices[0].message.reasoning_content == fake.THOUGHT
  again = [*HI, template.choices[0].message, {"role": "developer", "content": [{"type": "text", "text": "Be brief."}]}, *HI]
  found = client.chat.completions.create(model="tiny", messages=again, tools=[], frequency_penalty=0, user="me")
  assert found.choices[0].message.content == fake.ANSWER
  assert [m.id for m in client.models.list()] == ["tiny"] == [client.models.retrieve("tiny").id]
  with pytest.raises(openai.NotFoundError, match="ask for 'tiny'"):
    client.models.retrieve("gpt")
  assert server.post(CHAT, {"messages": HI, "stop": None})[0] == 200  # null is absent


def test_images(client, server):
  plain = client.chat.completions.create(model="tiny", messages=HI).usage.prompt_tokens
  found = client.chat.completions.create(model="tiny", messages=shown(uri(png()), detail="auto"))
  assert found.usage.prompt_tokens > plain + 40
  for kind in (".jpg", ".webp"):
    data = cv2.imencode(kind, np.zeros((30, 40, 3), np.uint8))[1].tobytes()
    assert server.post(CHAT, {"messages": shown(uri(data, "image/x"))})[0] == 200


def test_texts_continued(client, server):
  found = client.completions.create(model="tiny", prompt=["ab", "c"], n=2, max_tokens=5, logprobs=1, temperature=0)
  assert [c.index for c in found.choices] == [0, 1, 2, 3] and {c.text for c in found.choices} == {"Hello "}
  logprobs = found.choices[3].logprobs
  assert "".join(logprobs.tokens) == "Hello " and logprobs.text_offset == [0, 1, 2, 4, 5] and logprobs.top_logprobs[0] == {"H": -0.5}
  assert (found.usage.prompt_tokens, found.usage.completion_tokens) == (2, 20)
  assert [client.completions.create(model="tiny", prompt=p, max_tokens=1).usage.prompt_tokens for p in ([5, 6, 7], [[5], [6, 7]])] == [3, 3]
  pieces = list(client.completions.create(model="tiny", prompt="a", stream=True, stop=", it", n=2))
  for i in (0, 1):
    assert "".join(p.choices[0].text for p in pieces if p.choices[0].index == i) == "Hello 世界"
  assert server.post(PLAIN, {"prompt": "x", "model": "tiny"})[1]["choices"][0]["text"] == fake.ANSWER


def test_token_ids(server):
  body = {"prompt_token_ids": [1, 2, 3], "max_tokens": 6, "thinking": True, "top_logprobs": 2, "n": 2, "answer_tokens": 1}
  status, found = server.post(IDS, body)
  assert status == 200 and found["usage"]["prompt_tokens"] == 3
  sample = found["samples"][1]
  assert len(sample["ids"]) == 6 and sample["phases"] == ["think"] * 6 and sample["finish"] == "length"
  assert set(sample["logprobs"]) == {-0.5} and set(sample["behaviour_logprobs"]) == {-0.25}
  assert sample["forced"] == [False] * 6 and sample["versions"] == [0] * 6
  assert sample["top_logprobs"][0] == [[sample["ids"][0], -0.5], [7, -9999]]
  _, headers, data = server.ask("POST", IDS, {**body, "stream": True})
  *tokens, last = map(json.loads, data.splitlines())
  assert headers["content-type"] == "application/x-ndjson" and "usage" in last
  assert [t["id"] for t in tokens if t["sample"] == 1] == sample["ids"] and tokens[-1]["finish"] == "length"


@pytest.mark.parametrize("path,body,status,words", BAD, ids=[words for *_, words in BAD])
def test_refusals(server, path, body, status, words):
  found, answer = server.post(path, body)
  error = answer["error"]
  assert found == status and words in error["message"] and "\n" not in error["message"]
  assert set(error) == {"message", "type", "param", "code"}


def test_ids_of_images_are_refused(server):
  image = server.service.speaker.tokenizer.special_id("<image>")
  assert "stand for images" in server.post(IDS, {"prompt_token_ids": [5, image]})[1]["error"]["message"]


def test_http_errors(server):
  assert server.get("/v2")[0] == 404 and server.get(CHAT)[0] == 405
  assert server.ask("POST", CHAT, b"{}", {"Content-Type": "text/plain"})[0] == 415  # what a form of another site can send
  assert server.ask("GET", "/health", headers={"Host": "evil.example"})[0] == 400
  head = b"POST /generate HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\n"
  chunk = b"100000\r\n" + b" " * 0x100000 + b"\r\n"
  for rest in (b"Transfer-Encoding: chunked\r\n\r\n" + 2 * chunk + b"0\r\n\r\n", b"Content-Length: 5000000000\r\n\r\n"):
    with socket.create_connection(("127.0.0.1", server.port)) as raw:
      raw.sendall(head + rest)
      assert raw.recv(100).startswith(b"HTTP/1.1 413")


def test_figures_for_prometheus(server):
  before = server.ask("GET", "/metrics")[2].decode()
  server.post(IDS, {"prompt_token_ids": [1, 2, 3], "max_tokens": 6})
  after = server.ask("GET", "/metrics")[2].decode()

  def rise(name):
    value = lambda text: next((float(line.split()[-1]) for line in text.splitlines() if line.startswith(name)), 0.0)
    return value(after) - value(before)

  assert rise('bluelm_requests_total{path="/generate",status="200"}') == 1
  assert (rise("bluelm_prompt_tokens_total"), rise("bluelm_generation_tokens_total")) == (3, 6)
  assert (rise("bluelm_time_to_first_token_seconds_count"), rise("bluelm_time_between_tokens_seconds_count")) == (1, 5)
  assert "bluelm_engine_pages_free 8" in after and "bluelm_engine_prefix_tokens_total 3" in after and 'path="other",status="404"' in after


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_its_pages(server, stream):
  server.engine.pace = 0.05
  connection = http.client.HTTPConnection("127.0.0.1", server.port)
  connection.request("POST", CHAT, json.dumps({"messages": HI, "stream": stream, "n": 2}), {"Content-Type": "application/json"})
  if stream:
    connection.getresponse().read(10)
  until(lambda: server.engine.busy)
  connection.sock and connection.sock.shutdown(socket.SHUT_RDWR)
  connection.close()
  until(lambda: not server.engine.busy, 0.5)  # the answer would take twice that
  until(lambda: server.service.in_flight == 0)
  server.engine.pace = 0.0
  assert server.service.worker.stats["pages_free"] == fake.PAGES
  assert 'bluelm_requests_total{path="/v1/chat/completions",status="499"}' in server.ask("GET", "/metrics")[2].decode()


def test_admin_calls_need_the_token(server):
  for token, status in (("wrong", 401), ("", 401)):
    assert server.admin("pause", token=token)[0] == status
  assert server.ask("POST", "/admin/flush", b"{}")[0] == 401 and server.ask("GET", "/admin/flush")[0] == 405
  assert server.admin("flush") == (200, {"paused": False, "version": 0}) and server.engine.flushes == 1
  assert server.admin("update_weights", {"checkpoint": "x"})[0] == 403  # there is no directory of weights
  with serving(fake.speaker(), token="") as closed:
    assert closed.admin("pause", token="")[0] == 403


def test_too_many_wait_while_paused():
  with serving(fake.speaker(), Limits(requests=2)) as server, concurrent.futures.ThreadPoolExecutor() as pool:
    assert server.admin("pause")[1]["paused"] and server.get("/health")[1]["status"] == "paused"
    asked = [pool.submit(server.post, CHAT, ASK) for _ in range(2)]
    until(lambda: server.service.worker.stats["running"] == 2)
    status, headers, _ = server.ask("POST", CHAT, ASK)
    assert status == 429 and headers["retry-after"] == "1" and not any(a.done() for a in asked)
    assert not server.admin("continue")[1]["paused"]
    assert [a.result()[0] for a in asked] == [200, 200]


def test_drain_ends_what_runs_and_takes_no_more():
  before = threading.enumerate()
  with serving(fake.speaker()) as server, concurrent.futures.ThreadPoolExecutor() as pool:
    server.engine.pace = 0.02
    asked = pool.submit(server.post, CHAT, ASK)
    until(lambda: server.engine.busy)
    drained = asyncio.run_coroutine_threadsafe(server.server.drain(), server.loop)
    until(lambda: server.service.draining)
    status, headers, _ = server.ask("POST", CHAT, ASK)
    assert status == 503 and "retry-after" in headers
    assert server.get("/health") == (503, {"status": "draining", "version": 0, "in_flight": 1})
    assert asked.result()[1]["choices"][0]["message"]["content"] == fake.ANSWER
    drained.result(10)
    server.thread.join(10)
    assert not server.thread.is_alive() and not [t for t in threading.enumerate() if t.name == "engine" and t not in before]


def test_drain_gives_up_after_the_grace_time():
  with serving(fake.speaker(), Limits(grace_seconds=0.2)) as server, concurrent.futures.ThreadPoolExecutor() as pool:
    server.admin("pause")
    asked = pool.submit(server.post, CHAT, ASK)
    until(lambda: server.engine.busy)
    asyncio.run_coroutine_threadsafe(server.server.drain(), server.loop).result(10)
    assert asked.result() == (503, {"error": {"message": "the server stops", "type": "server_error", "param": None, "code": None}})
    server.thread.join(10)
    assert not server.thread.is_alive() and not server.engine.busy


def test_an_engine_that_fails_fails_what_runs(caplog):
  with serving(fake.speaker()) as server, concurrent.futures.ThreadPoolExecutor() as pool:
    server.admin("pause")
    asked = [pool.submit(server.ask, "POST", CHAT, {"messages": HI, "stream": s}) for s in (False, True)]
    until(lambda: server.service.worker.stats["running"] == 2)
    server.engine.broken = True
    server.admin("continue")
    whole, pieces = (a.result() for a in asked)
    assert whole[0] == 500 and b"server_error" in whole[2] and b"device is lost" not in whole[2]
    assert pieces[0] == 200 and b'"error"' in pieces[2] and b"[DONE]" not in pieces[2]
    assert "the device is lost" in caplog.text and server.get("/health")[1]["failure"] == "RuntimeError: the device is lost"
    assert server.get("/health")[0] == 503 and server.post(CHAT, ASK)[0] == 503 and server.admin("flush")[0] == 503
