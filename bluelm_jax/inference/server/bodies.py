"""JSON bodies: read within limits, their fields taken one by one, and what is left over refused."""

import asyncio
import json
from typing import Any

from bluelm_jax.inference.server.errors import Refusal
from bluelm_jax.inference.server.limits import Limits

_PATIENCE = 4  # a body so many times as large as allowed is read to its end, so that its sender reads the refusal
_KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", list: "a list", dict: "an object"}


async def read(request, limits: Limits) -> "Fields":
  """The fields of a request's body; Refusal for anything but a JSON object within the limits."""
  data, size = await _received(request, limits, limits.body_bytes)
  if size > limits.body_bytes:
    raise Refusal(413, f"the body is over {limits.body_bytes} bytes; send less")
  kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
  if kind != "application/json":  # which a page of another site cannot send unasked
    raise Refusal(415, f"the content type is {kind or 'missing'}; send application/json")
  try:
    found = json.loads(data)
  except (ValueError, RecursionError) as e:
    raise Refusal(400, f"the body is not JSON ({' '.join(str(e).split())[:100]}); mend it") from e
  if not isinstance(found, dict):
    raise Refusal(400, f"the body is {_name(found)}; send a JSON object")
  return Fields(found)


async def discard(request, limits: Limits) -> None:
  """Takes a body in and forgets it: who still sends does not see an answer."""
  await _received(request, limits, 0)


async def _received(request, limits: Limits, keep: int) -> tuple[bytearray, int]:
  """(the first bytes of a body, `keep` at most; its size, as far as it was read)."""
  most = _PATIENCE * limits.body_bytes
  length = request.headers.get("content-length", "")
  if length.isdecimal() and int(length) > most:
    return bytearray(), int(length)
  data, size = bytearray(), 0
  try:
    async with asyncio.timeout(limits.body_seconds):
      async for chunk in request.stream():
        data += chunk[: max(keep - size, 0)]
        size += len(chunk)
        if size > most:
          break
  except TimeoutError as e:
    raise Refusal(408, f"the body took more than {limits.body_seconds:g} seconds; send it faster", headers={"Connection": "close"}) from e
  return data, size


class Fields:
  """An object's fields. null counts as absent."""

  def __init__(self, found: dict, where: str = ""):
    """`where`: of the object, for messages."""
    self._left, self._where = {k: v for k, v in found.items() if v is not None}, where

  def take(self, name: str, kind: type, default: Any = None) -> Any:
    """The field's value, which must be of this kind, or the default."""
    value = self._left.pop(name, None)
    if value is None:
      return default
    fits = isinstance(value, (int, float) if kind is float else kind) and (kind is bool or not isinstance(value, bool))
    if not fits or (kind is float and not abs(value) < 1e300):  # whole numbers may be too long for a float
      raise self.refusal(name, f"must be {_KINDS[kind]}, not {_name(value)}")
    return float(value) if kind is float else value

  def take_any(self, name: str) -> Any:
    return self._left.pop(name, None)

  def has(self, name: str) -> bool:
    return name in self._left

  def needed(self, name: str, kind: type) -> Any:
    value = self.take(name, kind)
    if value is None:
      raise self.refusal(name, "is missing; give it")
    return value

  def only(self, **allowed: tuple) -> None:
    """Takes fields that change nothing, with the values (beside null) that say so; any other is refused."""
    for name, values in allowed.items():
      value = self._left.pop(name, None)
      if value is not None and not any(value == v and isinstance(value, bool) == isinstance(v, bool) for v in values):
        raise self.refusal(name, f"= {_short(value)} is not supported; leave it out")

  def end(self) -> None:
    if self._left:
      raise self.refusal(next(iter(self._left)), "is unknown; leave it out")

  def refusal(self, name: str, what: str) -> Refusal:
    return Refusal(400, f"{self._where}{_short(name)} {what}"[:500], param=f"{self._where}{name}"[:100])


def strings(fields: Fields, name: str, most: int) -> tuple[str, ...]:
  """A field that is a text or a list of at most so many."""
  value = fields.take_any(name)
  found = [] if value is None else [value] if isinstance(value, str) else value
  if not isinstance(found, list) or not all(isinstance(s, str) and s for s in found) or len(found) > most:
    raise fields.refusal(name, f"must be a text or a list of at most {most}, none of them empty")
  return tuple(found)


def ids(fields: Fields, name: str, value: Any, vocab_size: int) -> list[int]:
  """A list of token ids."""
  if not isinstance(value, list) or not all(type(i) is int and 0 <= i < vocab_size for i in value):
    raise fields.refusal(name, f"must be a list of token ids from 0 to {vocab_size - 1}")
  return value


def whole(text: str, param: str) -> str:
  """The text; JSON may hold halves of surrogate pairs, which are no characters."""
  try:
    text.encode()
  except UnicodeEncodeError as e:
    raise Refusal(400, "a text holds half of a surrogate pair; send whole characters", param) from e
  return text


def _name(value) -> str:
  return next((name for kind, name in _KINDS.items() if type(value) is kind), "null")


def _short(value) -> str:
  return value[:60] if isinstance(value, str) else repr(value)[:60]
