"""Errors as OpenAI's API words them."""

from starlette.responses import JSONResponse

_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


class Refusal(Exception):
  """What a client is told instead of an answer.

  Attributes:
    status: HTTP status.
    param: the field that is at fault.
    code: a word for programs.
  """

  def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None, headers: dict[str, str] | None = None):
    super().__init__(message)
    self.status, self.param, self.code, self.headers = status, param, code, headers


def body(status: int, message: str, param: str | None = None, code: str | None = None) -> dict:
  kind = _TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
  return {"error": {"message": _clean(message), "type": kind, "param": param and _clean(param), "code": code}}


def _clean(text: str) -> str:
  """JSON may hold halves of surrogate pairs, which cannot be sent back."""
  return text.encode("utf-8", "replace").decode()


async def refused(request, error: Refusal) -> JSONResponse:
  return JSONResponse(body(error.status, str(error), error.param, error.code), error.status, error.headers)


async def http_error(request, error) -> JSONResponse:
  """No such path, or another method than it takes."""
  return JSONResponse(body(error.status_code, f"{request.method} {request.url.path}: {error.detail}"), error.status_code, error.headers)


async def unforeseen(request, error) -> JSONResponse:
  """The trace is in the log; the client learns no more than that."""
  return JSONResponse(body(500, "the server failed; its log says why"), 500)
