"""A server in a thread of the test's process."""

import asyncio
import contextlib
import http.client
import json
import threading
import time

from bluelm_jax.inference.server import run
from bluelm_jax.inference.server.admin import Admin
from bluelm_jax.inference.server.limits import Limits
from bluelm_jax.inference.server.service import Service

TOKEN = "open sesame"


class Serving:
  """What a test holds of it."""

  def __init__(self, speaker, limits: Limits, token: str, root: str):
    self.engine, self.service = speaker.engine, Service(speaker, "tiny", limits)
    self._listener = run.listen("127.0.0.1", 0)
    self.port = self._listener.getsockname()[1]
    self.server = run.Server(self.service, Admin(self.service, speaker.model.config, token, root))
    self.thread = threading.Thread(target=lambda: asyncio.run(self._serve()))

  async def _serve(self):
    self.loop = asyncio.get_running_loop()
    await self.server.serve([self._listener])

  def ask(self, method: str, path: str, body=None, headers=()) -> tuple[int, dict, bytes]:
    """(status, headers, body) of one request; a body that is no bytes is sent as JSON."""
    connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
    with contextlib.closing(connection):
      data = body if isinstance(body, (bytes, type(None))) else json.dumps(body).encode()
      connection.request(method, path, data, {"Content-Type": "application/json", **dict(headers)})
      response = connection.getresponse()
      return response.status, {k.lower(): v for k, v in response.getheaders()}, response.read()

  def post(self, path: str, body, headers=()) -> tuple[int, dict]:
    status, _, data = self.ask("POST", path, body, headers)
    return status, json.loads(data)

  def get(self, path: str) -> tuple[int, dict]:
    status, _, data = self.ask("GET", path)
    return status, json.loads(data)

  def admin(self, name: str, body=None, token: str = TOKEN) -> tuple[int, dict]:
    return self.post(f"/admin/{name}", body or {}, {"Authorization": f"Bearer {token}"})


@contextlib.contextmanager
def serving(speaker, limits: Limits = Limits(), token: str = TOKEN, root: str = ""):
  found = Serving(speaker, limits, token, root)
  found.thread.start()
  try:
    until(lambda: found.server.started)
    yield found
  finally:
    found.server.should_exit = True
    found.thread.join()


def until(condition, seconds: float = 20.0) -> None:
  """Waits for a condition, which must come true in time."""
  end = time.monotonic() + seconds
  while not condition():
    assert time.monotonic() < end, "waited in vain"
    time.sleep(0.01)
