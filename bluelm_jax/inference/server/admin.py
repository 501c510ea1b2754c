"""Calls of whoever runs the server: pause, go on, other weights, forget; behind a bearer token."""

import asyncio
import hmac
import pathlib

from starlette.responses import JSONResponse

from bluelm_jax.inference.server import bodies
from bluelm_jax.inference.server.errors import Refusal
from bluelm_jax.inference.server.worker import Broken
from bluelm_jax.interop import load
from bluelm_jax.models import config as config_lib


class Admin:
  """Endpoints of one service."""

  def __init__(self, service, config, token: str, weights_root: str):
    """
    Args:
      config: of the model that is served.
      token: that each call must bring; "" refuses all.
      weights_root: the directory below which new weights may lie; "" allows none.
    """
    self._service, self._config, self._token = service, config, token
    self._root = pathlib.Path(weights_root).resolve() if weights_root else None
    self._one = asyncio.Lock()

  async def pause(self, request) -> JSONResponse:
    """No token is made until /admin/continue; requests wait."""
    self._check(request)
    return await self._answer(self._service.worker.pause(True))

  async def go_on(self, request) -> JSONResponse:
    self._check(request)
    return await self._answer(self._service.worker.pause(False))

  async def flush(self, request) -> JSONResponse:
    """Forgets cached prefixes and images."""
    self._check(request)
    return await self._answer(self._service.worker.do(lambda engine: engine.flush()))

  async def update_weights(self, request) -> JSONResponse:
    """{"checkpoint": a directory, "version": a number}; running requests go on with the new weights."""
    self._check(request)
    fields = await bodies.read(request, self._service.limits)
    path, version = self._place(fields), fields.take("version", int)
    fields.end()
    async with self._one:  # weights are large: never two at a time
      if version is None:
        version = self._service.worker.version + 1
      params = await self._told(asyncio.to_thread(self._load, path))
      return await self._answer(self._service.worker.update_weights(version, params))

  def _check(self, request) -> None:
    if not self._token:
      raise Refusal(403, "no admin token is set; start the server with $BLUELM_ADMIN_TOKEN or --admin_token")
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), self._token.encode()):
      raise Refusal(401, "the admin token is missing or wrong; send Authorization: Bearer TOKEN", headers={"WWW-Authenticate": "Bearer"})

  def _place(self, fields: bodies.Fields) -> pathlib.Path:
    found = fields.needed("checkpoint", str)
    if self._root is None:
      raise Refusal(403, "no directory of weights is set; start the server with --weights_root")
    if "\0" in found:
      raise fields.refusal("checkpoint", "is no path")
    path = (self._root / found).resolve()
    if not path.is_relative_to(self._root):
      raise Refusal(403, "the checkpoint lies outside of --weights_root; move it there", "checkpoint")
    return path

  def _load(self, path: pathlib.Path):
    path = load.checkpoint_directory(path)
    if not config_lib.same_weights(load.description(path), self._config):
      raise ValueError(f"{path} holds another model than the one served; give weights of the same config")
    return load.load_params(path, self._config)

  async def _answer(self, work) -> JSONResponse:
    await self._told(work)
    worker = self._service.worker
    return JSONResponse({"paused": worker.paused, "version": worker.version})

  async def _told(self, work):
    try:
      return await work
    except (ValueError, OSError) as e:
      raise Refusal(400, " ".join(str(e).split())) from e
    except Broken as e:
      raise Refusal(503, str(e)) from e
