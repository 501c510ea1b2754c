"""Paths and what answers them."""

import contextlib
import pathlib

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import HTMLResponse
from starlette.responses import JSONResponse
from starlette.responses import Response
from starlette.routing import Route

from bluelm_jax.inference.server import chat
from bluelm_jax.inference.server import completions
from bluelm_jax.inference.server import errors
from bluelm_jax.inference.server import tokens
from bluelm_jax.inference.server.admin import Admin
from bluelm_jax.inference.server.answers import Answers
from bluelm_jax.inference.server.errors import Refusal
from bluelm_jax.inference.server.metrics import Counted
from bluelm_jax.inference.server.service import Service

_PAGE = pathlib.Path(__file__).with_name("page.html")
# The page's own script and style lie inside it; it reaches nothing but this server.
_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'")
_LOOPBACK = ("localhost", "127.0.0.1", "[::1]")


def build(service: Service, admin: Admin, loopback: bool = True) -> Starlette:
  """The ASGI application.

  Args:
    loopback: whether only requests to this machine's own names are answered, so that no page elsewhere reaches us by a
      name of its own that leads here (DNS rebinding).
  """
  public = _Public(service)
  routes = [
      Route("/v1/chat/completions", Answers(service, chat), methods=["POST"]),
      Route("/v1/completions", Answers(service, completions), methods=["POST"]),
      Route("/generate", Answers(service, tokens), methods=["POST"]),
      Route("/v1/models", public.models),
      Route("/v1/models/{name:path}", public.model),
      Route("/health", public.health),
      Route("/metrics", public.metrics),
      Route("/", public.page),
      *(Route(f"/admin/{name}", endpoint, methods=["POST"]) for name, endpoint in (
          ("pause", admin.pause), ("continue", admin.go_on), ("update_weights", admin.update_weights), ("flush", admin.flush)))]

  @contextlib.asynccontextmanager
  async def lifespan(_):
    async with service.worker:
      yield
    service.readers.shutdown(cancel_futures=True)

  middleware = [Middleware(Counted, metrics=service.metrics, paths=frozenset(r.path for r in routes))]
  if loopback:
    middleware.append(Middleware(TrustedHostMiddleware, allowed_hosts=_LOOPBACK, www_redirect=False))
  handlers = {Refusal: errors.refused, HTTPException: errors.http_error, Exception: errors.unforeseen}
  return Starlette(routes=routes, middleware=middleware, exception_handlers=handlers, lifespan=lifespan)


class _Public:
  """What anybody may read."""

  def __init__(self, service: Service):
    self._service = service

  async def models(self, request) -> JSONResponse:
    return JSONResponse({"object": "list", "data": [self._served()]})

  async def model(self, request) -> JSONResponse:
    if not (name := request.path_params["name"]):
      return await self.models(request)
    self._service.check_name(name)
    return JSONResponse(self._served())

  def _served(self) -> dict:
    service = self._service
    return {
        "id": service.name, "object": "model", "created": 0, "owned_by": "bluelm_jax", "max_model_len": service.context, "thinks": service.thinks,
        "sees": service.speaker.chat.anyres is not None}

  async def health(self, request) -> JSONResponse:
    service, worker = self._service, self._service.worker
    status = "failed" if worker.failure else "draining" if service.draining else "paused" if worker.paused else "ok"
    found = {"status": status, "version": worker.version, "in_flight": service.in_flight}
    if worker.failure:
      found["failure"] = worker.failure
    return JSONResponse(found, 503 if status in ("failed", "draining") else 200)

  async def metrics(self, request) -> Response:
    return Response(self._service.metrics.text(self._service.worker.stats), headers={"content-type": self._service.metrics.type})

  async def page(self, request) -> HTMLResponse:
    return HTMLResponse(_PAGE.read_bytes(), headers={"Content-Security-Policy": _POLICY, "X-Content-Type-Options": "nosniff"})
