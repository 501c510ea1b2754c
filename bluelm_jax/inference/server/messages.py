"""OpenAI's messages to ours: roles checked, images decoded from data URIs."""

import base64
import binascii
import re

from bluelm_jax.data import images
from bluelm_jax.inference.server import bodies
from bluelm_jax.inference.server.errors import Refusal
from bluelm_jax.inference.server.limits import Limits
from bluelm_jax.models.config import AnyResConfig

_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
_URI = re.compile(r"data:image/[\w.+-]{1,30}(?:;[\w.+-]{1,30}=[\w.+-]{1,30})?;base64,", re.ASCII)


def read(found: list, limits: Limits, anyres: AnyResConfig | None) -> list[dict]:
  """Messages as `ChatFormat.prompt` takes them. Nothing is ever fetched: an image comes inside the request.

  Args:
    anyres: of the model; images may be decoded no larger than it sees them.

  Raises:
    Refusal: of another form, or over a limit.
  """
  reader = _Reader(limits, anyres)
  return [reader.message(m, f"messages[{i}]") for i, m in enumerate(found)]


class _Reader:
  """Counts what the messages hold together."""

  def __init__(self, limits, anyres):
    self._limits, self._anyres = limits, anyres
    self._images = self._characters = 0

  def message(self, found, where: str) -> dict:
    fields = _object(found, where)
    role = fields.needed("role", str)
    if role not in _ROLES:
      raise fields.refusal("role", f"= {role[:40]!r} is not supported; use {', '.join(_ROLES)}")
    fields.only(tool_calls=([],), refusal=(), audio=(), function_call=(), annotations=([],))  # of an answer that is sent back
    message = {"role": _ROLES[role], "content": self._content(fields, role, where)}
    if role == "assistant" and (thought := fields.take("reasoning_content", str)) is not None:
      message["reasoning_content"] = self._text(thought)
    fields.end()
    return message

  def _content(self, fields, role, where):
    content = fields.take_any("content")
    if isinstance(content, str):
      return self._text(content)
    if not isinstance(content, list) or not content:
      raise fields.refusal("content", "must be a text or a list of parts")
    parts = [self._part(part, f"{where}.content[{i}]", role) for i, part in enumerate(content)]
    return "".join(p["text"] for p in parts) if role == "assistant" else parts

  def _part(self, found, where: str, role: str) -> dict:
    fields = _object(found, where)
    kind = fields.needed("type", str)
    if kind == "text":
      part = {"type": "text", "text": self._text(fields.needed("text", str))}
    elif kind == "image_url" and role == "user":
      part = {"type": "image", "image": self._image(_object(fields.needed("image_url", dict), f"{where}.image_url"))}
    else:
      raise fields.refusal("type", f"= {kind[:40]!r} is not supported here; use text, or in a user's message image_url")
    fields.end()
    return part

  def _text(self, text: str) -> str:
    self._characters += len(text)
    if self._characters > self._limits.text_characters:
      most = self._limits.text_characters
      raise Refusal(400, f"the messages have over {most} characters; shorten them", "messages", "context_length_exceeded")
    return bodies.whole(text, "messages")

  def _image(self, fields):
    self._images += 1
    if self._images > self._limits.images:
      raise Refusal(400, f"over {self._limits.images} images; show fewer", "messages")
    fields.only(detail=("auto",))
    url = fields.needed("url", str)
    fields.end()
    head = _URI.match(url)
    if not head:
      raise fields.refusal("url", "must be a data URI of an image in base64 (data:image/png;base64,...); others are not fetched")
    if (len(url) - head.end()) * 3 // 4 > self._limits.image_bytes + 2:
      raise fields.refusal("url", f"holds over {self._limits.image_bytes} bytes; send a smaller image")
    try:
      data = base64.b64decode(url[head.end() :], validate=True)
    except (binascii.Error, ValueError) as e:
      raise fields.refusal("url", "is not base64; encode the file's bytes") from e
    try:
      return images.decode(data, f"image {self._images}", self._anyres and self._anyres.canvas, self._limits.image_pixels)
    except ValueError as e:
      raise Refusal(400, str(e), "messages", "invalid_image") from e


def _object(found, where: str) -> bodies.Fields:
  if not isinstance(found, dict):
    raise Refusal(400, f"{where} must be an object", where)
  return bodies.Fields(found, f"{where}.")
