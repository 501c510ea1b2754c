"""POST endpoints that generate: read, admit, ask the engine, answer in whole or in pieces; and end where the client leaves."""

import asyncio
import collections
import contextlib
import time

from starlette.requests import ClientDisconnect
from starlette.requests import Request

from bluelm_jax.inference.server import bodies
from bluelm_jax.inference.server import errors
from bluelm_jax.inference.server import frames
from bluelm_jax.inference.server.errors import Refusal
from bluelm_jax.inference.server.worker import Broken
from bluelm_jax.inference.server.worker import Stopped
from bluelm_jax.inference.server.worker import Stream


class Answers:
  """An ASGI endpoint: `form` is a module with `read(fields, service) -> Asked` and `Reply(asked, service)`."""

  def __init__(self, service, form):
    self._service, self._form = service, form

  async def __call__(self, scope, receive, send):
    request = Request(scope, receive)
    try:
      with contextlib.ExitStack() as stack:
        try:
          stack.enter_context(self._service.place())
        except Refusal:
          await bodies.discard(request, self._service.limits)
          raise
        fields = await bodies.read(request, self._service.limits)
        work = asyncio.ensure_future(self._answer(fields, send))
        left = asyncio.ensure_future(_left(receive))
        try:
          await asyncio.wait((work, left), return_when=asyncio.FIRST_COMPLETED)
          if not work.done():
            scope["bluelm.left"] = True
            return
          await work
        finally:
          for task in (work, left):
            task.cancel()
          await asyncio.gather(work, left, return_exceptions=True)
    except (ClientDisconnect, _Stuck):
      scope["bluelm.left"] = True

  async def _answer(self, fields, send):
    service, began = self._service, time.perf_counter()
    asked = await self._read(fields)
    reply, stream = self._form.Reply(asked, service), Stream(asked.prompts, asked.options)
    try:
      try:
        await service.worker.submit(stream)
      except ValueError as e:
        raise Refusal(400, str(e)) from e
      service.metrics.tokens_in.inc(reply.usage.prompt_tokens)
      steps = self._steps(stream, reply, began)
      await (self._pieces if asked.stream else self._whole)(reply, steps, _Sender(send, service.limits.send_seconds))
    except Broken as e:
      raise Refusal(503 if isinstance(e, Stopped) else 500, str(e)) from e
    finally:
      service.worker.cancel(stream)

  async def _read(self, fields):
    """Off the event loop: images take time."""

    def read():
      self._service.check_model(fields)
      return self._form.read(fields, self._service)

    try:
      return await asyncio.get_running_loop().run_in_executor(self._service.readers, read)
    except ValueError as e:
      raise Refusal(400, str(e)) from e

  async def _steps(self, stream, reply, began):
    """What the reply makes of each step of the stream, timed; a choice that it ends at a stop text draws no more."""
    metrics, last, over = self._service.metrics, {}, set()
    async for step in stream.steps():
      now = time.perf_counter()
      metrics.tokens_out.inc(len(step))
      counts = collections.Counter(choice for choice, _ in step)
      for choice, count in counts.items():
        if choice in last:
          for _ in range(count):  # a call of the device may have drawn several
            metrics.between.observe((now - last[choice]) / count)
        elif not last:
          metrics.first.observe(now - began)
        last[choice] = now
      pieces = []
      for choice, token in step:
        pieces += reply.add(choice, token)
        if reply.finished(choice) and not token.finish and choice not in over and not reply.ended:
          over.add(choice)
          self._service.worker.end(stream, choice)
      yield pieces

  async def _whole(self, reply, steps, sender):
    async for _ in steps:
      if reply.ended:
        break
    await sender.start("application/json")
    await sender.send(frames.dumps(reply.whole()), more=False)

  async def _pieces(self, reply, steps, sender):
    await sender.start(reply.media_type)
    await sender.send(b"".join(map(reply.frame, reply.start())))
    try:
      async for pieces in steps:
        if pieces:
          await sender.send(b"".join(map(reply.frame, pieces)))
        if reply.ended:
          break
      last = b"".join(map(reply.frame, reply.end())) + reply.closing
    except Broken as e:  # too late for a status
      last = reply.frame(errors.body(500, str(e)))
    await sender.send(last, more=False)


class _Stuck(Exception):
  """A client does not read what it is sent."""


class _Sender:
  """Sends to a client that must read in time."""

  def __init__(self, send, seconds: float):
    self._send, self._seconds = send, seconds

  async def start(self, media_type: str):
    headers = [(b"content-type", media_type.encode()), (b"cache-control", b"no-store"), (b"x-accel-buffering", b"no")]
    await self._send({"type": "http.response.start", "status": 200, "headers": headers})

  async def send(self, data: bytes, more: bool = True):
    try:
      async with asyncio.timeout(self._seconds):
        await self._send({"type": "http.response.body", "body": data, "more_body": more})
    except TimeoutError as e:
      raise _Stuck from e


async def _left(receive):
  while (await receive())["type"] != "http.disconnect":
    pass
