"""Many clients at once, who ask for all kinds of things, in proper form and not, and leave when they please.

  python -m tests.bench.load [minutes] [clients]

A server with random weights in a process of its own. At the end nothing must have crashed or hung: every accepted request was
answered in whole, every bad one refused with its status, all pages are free, memory is flat, and SIGTERM ends it with exit code 0.
It exits with 1 where anything is not so.
"""

import asyncio
import base64
import collections
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import time
from typing import NamedTuple

import cv2
import numpy as np

from tests.bench import machine
from tests.bench import soak
from tests.inference.server import checkpoint

BODY_BYTES = 1 << 20  # what the server is told to take
PLACES = 120  # requests at once; more are sent away
WAIT = 120.0  # seconds in which any answer must be there
RISE = 2.0  # MiB a minute of the second half that still count as flat
EVERY = 2.0  # seconds between two looks
LEAVES = 0.15  # of the clients, in the middle of whatever they asked
CHAT = "/v1/chat/completions"
SHARED = {"role": "system", "content": "A prefix that many share, of several pages. " * 2}
HI = [SHARED, {"role": "user", "content": "Point to the button. 指出按钮。"}]


class Request(NamedTuple):
  """What a client sends, and the statuses that are right for it."""

  kind: str
  path: str
  body: bytes
  right: tuple[int, ...]
  headers: str = "Content-Type: application/json\r\n"
  method: str = "POST"


def png(pixels: np.ndarray) -> bytes:
  return cv2.imencode(".png", pixels)[1].tobytes()


BOMB = png(np.zeros((6000, 6000), np.uint8))  # few bytes, too many pixels


def ask(rng: np.random.Generator) -> Request:
  """A request at random: half of them proper."""
  if rng.random() < 0.5:
    return proper(rng)
  picture = png(rng.integers(0, 255, (60, 40, 3), np.uint8))
  bad = {
      "torn": (json.dumps({"messages": HI}).encode()[: int(rng.integers(1, 20))], 400),
      "bytes": (rng.bytes(200), 400), "deep": (b"[" * 50_000, 400), "no object": (b"[]", 400), "large": (b" " * (BODY_BYTES + 1), 413),
      "unknown": ({"messages": HI, "warmth": 1}, 400), "kind": ({"messages": HI, "temperature": "hot"}, 400),
      "long": ({"messages": [{"role": "user", "content": "好" * 3000}]}, 400), "model": ({"messages": HI, "model": "x"}, 404),
      "no image": ({"messages": shown(rng.bytes(100))}, 400), "torn image": ({"messages": shown(picture[: len(picture) // 2])}, 400),
      "bomb": ({"messages": shown(BOMB)}, 400), "remote": ({"messages": shown(None)}, 400), "tools": ({"messages": HI, "tools": [{}]}, 400)}
  kind = list(bad)[rng.integers(len(bad))]
  body, status = bad[kind]
  if rng.random() < 0.1:
    return Request("wrong type", CHAT, b"{}", (415, 429), "Content-Type: text/plain\r\n")
  return Request(kind, CHAT, body if isinstance(body, bytes) else json.dumps(body).encode(), (status, 429))


def proper(rng) -> Request:
  said = dict(max_tokens=int(rng.integers(4, 40)), seed=int(rng.integers(2**32)), stream=bool(rng.random() < 0.5))
  said["temperature"] = float(rng.choice([0.0, 1.0]))
  kind = ("chat", "thought", "image", "text", "ids", "health", "figures")[rng.integers(7)]
  path, body = CHAT, {"messages": HI, "n": int(rng.integers(1, 4)), **said}
  if kind == "thought":
    body.update(thinking_token_budget=int(rng.integers(0, 30)), max_tokens=int(rng.integers(10, 60)))
  elif kind == "image":
    body["messages"] = shown(cv2.imencode(".jpg", rng.integers(0, 255, (int(rng.integers(30, 300)), 120, 3), np.uint8))[1].tobytes())
  elif kind == "text":
    path, body = "/v1/completions", {"prompt": ["The ", "我们"][: int(rng.integers(1, 3))], "stop": ["e"], **said}
  elif kind == "ids":
    path, body = "/generate", {"prompt_token_ids": rng.integers(100, 1000, int(rng.integers(1, 100))).tolist(), **said}
  elif kind in ("health", "figures"):
    return Request(kind, "/health" if kind == "health" else "/metrics", b"", (200,), method="GET")
  return Request(f"{kind}, streamed" if said["stream"] else kind, path, json.dumps(body).encode(), (200, 429))


def shown(data: bytes | None):
  url = "http://127.0.0.1/x.png" if data is None else "data:image/png;base64," + base64.b64encode(data).decode()
  return [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "?"}]}]


class Client:
  """Asks one thing after the other and counts what comes of it."""

  def __init__(self, port: int, seed: int, counts: collections.Counter, faults: list[str]):
    self._port, self._rng, self._counts, self._faults = port, np.random.default_rng(seed), counts, faults

  async def run(self, end: float) -> None:
    while time.monotonic() < end:
      request = ask(self._rng)
      try:
        async with asyncio.timeout(WAIT):
          outcome = await self._one(request)
      except TimeoutError:
        outcome = "none"
        self._faults.append(f"{request.kind}: no answer in {WAIT:g} s")
      except OSError as e:
        outcome = "cut off"
        self._faults.append(f"{request.kind}: {e}")
      self._counts[request.kind, outcome] += 1
      if outcome == "429":
        await asyncio.sleep(self._rng.exponential(1.0))

  async def _one(self, request: Request) -> str:
    reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
    leaves = self._rng.random() < LEAVES
    try:
      head = f"{request.method} {request.path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{request.headers}"
      data = f"{head}Content-Length: {len(request.body)}\r\n\r\n".encode() + request.body
      if leaves and self._rng.random() < 0.3:  # before all is said
        writer.write(data[: int(self._rng.integers(len(data)))])
        await writer.drain()
        return "left"
      writer.write(data)
      await writer.drain()
      if leaves:
        try:
          async with asyncio.timeout(self._rng.exponential(0.3)):
            await reader.read(int(self._rng.integers(1, 2000)))
        except TimeoutError:
          pass
        return "left"
      answer = await reader.read()
      while not reader.at_eof():
        answer += await reader.read()
    finally:
      writer.transport.abort() if leaves else writer.close()
    return self._judge(request, answer)

  def _judge(self, request: Request, answer: bytes) -> str:
    head, _, body = answer.partition(b"\r\n\r\n")
    status = int(head[9:12] or 0)
    if status not in request.right:
      self._faults.append(f"{request.kind}: status {status}, not {request.right}: {body[:200]!r}")
    elif status == 200 and not whole(request, head, body):
      self._faults.append(f"{request.kind}: torn or failed answer {body[-300:]!r}")
    return str(status)


def whole(request: Request, head: bytes, body: bytes) -> bool:
  """Whether an answer has its end, and every sample a reason for its own."""
  if b"chunked" in head.lower():
    body, rest = b"", body
    while rest:
      size, _, rest = rest.partition(b"\r\n")
      if not int(size, 16):
        break
      body, rest = body + rest[: int(size, 16)], rest[int(size, 16) + 2 :]
    else:
      return False
  if request.method == "GET":
    return b"ok" in body or b"bluelm_engine_pages_free" in body
  asked = json.loads(request.body)
  samples = asked.get("n", 1) * (len(asked["prompt"]) if "prompt" in asked else 1)
  if asked["stream"] and "messages" not in asked and "prompt" not in asked:
    *tokens, last = map(json.loads, body.splitlines())
    return "usage" in last and sum(t["finish"] is not None for t in tokens) == samples
  if asked["stream"]:
    ends = len(re.findall(rb'"finish_reason":"(?:stop|length)"', body))
    return body.endswith(b"data: [DONE]\n\n") and b'"error"' not in body and ends == samples
  found = json.loads(body)
  ends = [c.get("finish_reason", c.get("finish")) for c in found.get("choices", found.get("samples"))]
  return len(ends) == samples and set(ends) <= {"stop", "length"}


async def figures(port: int) -> dict[str, float]:
  """The engine's, from /metrics."""
  reader, writer = await asyncio.open_connection("127.0.0.1", port)
  writer.write(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
  text = (await reader.read(-1)).decode()
  writer.close()
  return {name: float(value) for name, value in re.findall(r"^bluelm_(\w+) ([\d.e+-]+)$", text, re.MULTILINE)}


async def storm(pid: int, port: int, minutes: float, clients: int) -> list[str]:
  counts, faults, looks, began = collections.Counter(), [], [], time.monotonic()
  running = [asyncio.ensure_future(Client(port, i, counts, faults).run(began + 60 * minutes)) for i in range(clients)]
  while not all(c.done() for c in running):
    await asyncio.wait(running, timeout=EVERY)
    looks.append((time.monotonic() - began, *soak.held(pid)))
  for client in running:
    client.result()
  seconds = time.monotonic() - began
  for _ in range(100):
    last = await figures(port)
    if not last["requests_in_flight"]:
      break
    await asyncio.sleep(0.1)
  print(f"{sum(counts.values())} requests of {clients} clients in {seconds:.0f} s, {last['generation_tokens_total'] / seconds:.0f} tokens/s")
  for kind in sorted({k for k, _ in counts}):
    print(f"  {kind}: " + ", ".join(f"{n} {outcome}" for (k, outcome), n in sorted(counts.items()) if k == kind), flush=True)
  times, sizes, files = np.array([look for look in looks if look[1]]).T
  kept = times > max(seconds / 2, soak.WARM)  # caches, programs and the heap fill before
  rise = 60 * np.polyfit(times[kept], sizes[kept], 1)[0] if seconds > 3 * soak.WARM else None
  slope = "too short a run for its slope" if rise is None else f"{rise:+.2f} a minute in the second half"
  print(f"memory {sizes[0]:.0f} MiB at first, {sizes[-1]:.0f} at the end, {slope}; {files.min():.0f} to {files.max():.0f} open files")
  print("at the end " + ", ".join(f"{name} {value:g}" for name, value in last.items() if name.startswith(("engine_", "requests_in"))))
  left = sum(last[name] for name in ("requests_in_flight", "engine_running", "engine_waiting"))
  if left or last["engine_pages_free"] != last["engine_pages_total"]:
    faults.append("requests or pages are left over")
  if rise is not None and rise > RISE:
    faults.append(f"memory rises by {rise:.2f} MiB a minute, over {RISE:g}")
  if not any(outcome == "200" for _, outcome in counts):
    faults.append("nothing was answered")
  return faults


def main(minutes: float, clients: int) -> None:
  print(f"{machine.line()}; {minutes:g} minutes, {clients} clients", flush=True)
  with tempfile.TemporaryDirectory() as folder:
    checkpoint.write(pathlib.Path(folder) / "random")
    command = [sys.executable, "-m", "bluelm_jax.serve", f"--checkpoint={folder}/random", "--port=0"]
    command += [f"--limit_body_bytes={BODY_BYTES}", f"--limit_requests={PLACES}"]
    with open(f"{folder}/log", "w+") as log:
      server = subprocess.Popen(command, cwd=machine.ROOT, stderr=log, env={**os.environ, "JAX_PLATFORMS": "cpu"})
      try:
        port = _port(server, log)
        faults = asyncio.run(storm(server.pid, port, minutes, clients))
        server.send_signal(signal.SIGTERM)
        if code := server.wait(60):
          faults.append(f"the server left with {code}")
      finally:
        server.kill()
      log.seek(0)
      said = [line for line in log.read().splitlines() if not line.startswith("serving")]
      if said:
        faults.append(f"the server said {len(said)} lines, the last ones: {' | '.join(said[-5:])}")
  print("\n".join(f"{n} x {fault}" for fault, n in collections.Counter(faults).most_common(20)) or "all as it must be")
  sys.exit(bool(faults))


def _port(server, log) -> int:
  """Where it listens, once it says so."""
  while server.poll() is None:
    if found := re.search(r":(\d+)\n", pathlib.Path(log.name).read_text()):
      return int(found[1])
    time.sleep(0.1)
  raise RuntimeError(pathlib.Path(log.name).read_text())


if __name__ == "__main__":
  main(float(sys.argv[1]) if len(sys.argv) > 1 else 10, int(sys.argv[2]) if len(sys.argv) > 2 else 200)
