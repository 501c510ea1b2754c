"""The application in uvicorn: listening, draining, leaving."""

import asyncio
import contextlib
import signal
import socket

import uvicorn

from bluelm_jax.inference.server import app
from bluelm_jax.inference.server.admin import Admin
from bluelm_jax.inference.server.service import Service
from bluelm_jax.inference.server.worker import Broken

_LAST = 5.0  # seconds for what is still to be sent after the grace time


class Server(uvicorn.Server):
  """Drains where uvicorn would close its doors at once, and then leaves with exit code 0."""

  def __init__(self, service: Service, admin: Admin, loopback: bool = True):
    # No access log: /metrics counts, and what users say is theirs. Clients' headers say nothing about who they are.
    super().__init__(uvicorn.Config(
        app.build(service, admin, loopback), lifespan="on", log_level="warning", access_log=False, proxy_headers=False, server_header=False,
        timeout_graceful_shutdown=_LAST))
    self._service = service

  @contextlib.contextmanager
  def capture_signals(self):
    yield  # ours, below

  async def run_until_told(self, sockets: list[socket.socket]) -> None:
    """Serves until SIGTERM or SIGINT, or until `drain` is called."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
      loop.add_signal_handler(number, self._told)
    await self.serve(sockets)

  def _told(self):
    if self._service.draining:  # twice: somebody is in a hurry
      self.should_exit = True
    else:
      self._draining = asyncio.ensure_future(self.drain())

  async def drain(self) -> None:
    """Takes no new requests, lets running ones end within the grace time, ends the others with an error, and stops serving."""
    service = self._service
    service.draining = True
    with contextlib.suppress(TimeoutError):
      async with asyncio.timeout(service.limits.grace_seconds):
        while service.in_flight:
          await asyncio.sleep(0.05)
    if service.in_flight:
      with contextlib.suppress(TimeoutError, Broken):
        async with asyncio.timeout(_LAST):
          await service.worker.stop()
    self.should_exit = True


def listen(host: str, port: int) -> socket.socket:
  """A bound socket; port 0 takes any free one."""
  family = socket.AF_INET6 if ":" in host else socket.AF_INET
  try:
    return socket.create_server((host, port), family=family, backlog=1024)
  except OSError as e:
    raise ValueError(f"cannot listen on {host}:{port} ({e.strerror or e}); choose another --host or --port") from e
