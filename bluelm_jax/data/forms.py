"""The forms in which conversations and documents come, and how each becomes a Sample.

  OpenAI       {"messages": [{"role", "content": text or parts, "reasoning_content"?}], "images"?: [...]}
  LLaVA        {"conversations": [{"from": "human" or "gpt", "value": "<image>\\n..."}], "image"?: one or a list}
  document     {"text": "... <image> ...", "images"?: [...]}
  interleaved  {"texts": [text or null, ...], "images": [null or image, ...]}, as OBELICS
  preference   {"prompt"?: text or messages, "chosen", "rejected": text or messages, "images"?: [...]}

An image is a path beside the data file, a data URI, base64, bytes, or HuggingFace's {"bytes", "path"}. "<image>" marks where
it stands in a text; where none is marked, images come first. Fields that a form does not name go to `Sample.meta`.
"""

import base64
import binascii
import errno
from typing import Any

from bluelm_jax.data import faults
from bluelm_jax.data import files
from bluelm_jax.data.sample import Sample

MARK = "<image>"
_IMAGE = {"type": "image"}
_SPEAKERS = {"system": "system", "human": "user", "gpt": "assistant"}
_ROLES = ("system", "user", "assistant")
_MESSAGE = ("role", "content", "reasoning_content")
_BASE64 = ("iVBORw0KGgo", "/9j/", "UklGR", "R0lGOD")  # PNG, JPEG, WebP, GIF
_NEAR = ("file", "gs", "s3")  # protocols of images beside that of their data file; others lead anywhere
_NO_FILE = (errno.ENOENT, errno.EISDIR, errno.ENOTDIR, errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.ELOOP)
_OWN = ("source", "licence", "license")


def sample(record: dict[str, Any], path: str) -> Sample:
  """The Sample of a record.

  Args:
    record: fields as its file gives them; a field that is None counts as absent.
    path: of that file; images lie beside it.

  Raises:
    Fault: no known form, or a form that is not kept.
  """
  fields = {k: v for k, v in record.items() if v is not None}
  if "tools" in fields:
    raise faults.Fault("record", "has tools, which no chat here can call; leave such records out")
  if "chosen" in fields or "rejected" in fields:
    return _preference(fields, path)
  for key, build in (("messages", turns), ("conversations", _llava)):
    if key in fields:
      with faults.of("conversation"):
        return _finish(fields, path, key, messages=build(fields.pop(key)))
  if isinstance(fields.get("texts"), list):
    with faults.of("document"):
      return _interleaved(fields, path)
  if isinstance(fields.get("text"), str):
    with faults.of("document"):
      return _finish(fields, path, "text", text=fields.pop("text"))
  raise faults.Fault("record", f"has the fields {', '.join(map(str, record)) or 'of nothing'}; give messages, conversations, text, texts, or chosen and rejected")


def _finish(fields, path, what, text="", messages=()) -> Sample:
  """A Sample with its images read, as many as are marked."""
  held = [fields.pop(k) for k in ("image", "images") if k in fields]
  given = [i for h in held for i in (h if isinstance(h, list) else [h])]
  inline = [p.pop("image") for m in messages if isinstance(m["content"], list) for p in m["content"] if "image" in p]
  if inline and given:
    raise ValueError(f"has images both in its {what} and beside them; keep one")
  marked = text.count(MARK) if text else sum(p == _IMAGE for m in messages if isinstance(m["content"], list) for p in m["content"])
  if given and not marked:  # "<image>" in a text without images is a word
    text, messages, marked = _in_front(text, messages, len(given))
  images = inline or given
  if marked != len(images) and (images or not text):
    raise ValueError(f"marks {marked} images in its {what} and has {len(images)}; give one for each {MARK}")
  with faults.of("image"):
    data = tuple(_bytes(i, path) for i in images)
  source, licence = str(fields.get("source", path)), str(fields.get("licence", fields.get("license", "")))
  return Sample(source, licence, text, tuple(messages), data, {k: v for k, v in fields.items() if k not in _OWN})


def _in_front(text, messages, count):
  if not messages:
    return MARK * count + text, messages, count
  first = next((i for i, m in enumerate(messages) if m["role"] == "user"), None)
  if first is None:
    raise ValueError("has images and no user who shows them; add a user turn")
  content = messages[first]["content"]
  parts = content if isinstance(content, list) else [{"type": "text", "text": content}]
  shown = {**messages[first], "content": [dict(_IMAGE) for _ in range(count)] + parts}
  return text, [*messages[:first], shown, *messages[first + 1 :]], count


def turns(messages) -> list[dict]:
  """Messages in the OpenAI form, parts "image" and "text" alone; an image part keeps its image until it is read."""
  if not isinstance(messages, (list, tuple)) or not messages:
    raise ValueError("has no list of messages; give at least one turn")
  found = []
  for message in messages:
    if not isinstance(message, dict):
      raise ValueError(f"has a message that is a {type(message).__name__}; give an object")
    message = {k: v for k, v in message.items() if v is not None}  # tables fill up with nulls
    if set(message) - set(_MESSAGE):
      raise ValueError(f"has a message with {', '.join(sorted(set(message) - set(_MESSAGE)))}; its fields are {', '.join(_MESSAGE)}")
    role, content = message.get("role"), message.get("content")
    if role not in _ROLES:
      raise ValueError(f"has a message of role {str(role)[:40]!r}; use {', '.join(_ROLES)}")
    if not isinstance(content, (str, list)) or not isinstance(message.get("reasoning_content", ""), str):
      raise ValueError(f"has a {role} message whose content is no text and no list of parts; mend it")
    parts = _split(content) if isinstance(content, str) else [p for part in content for p in _part(part)]
    if all(p["type"] == "text" for p in parts):
      message["content"] = "".join(p["text"] for p in parts)
    elif role == "user":
      message["content"] = parts
    else:
      raise ValueError(f"has an image in a {role} message; only users show images")
    if "reasoning_content" in message and role != "assistant":
      raise ValueError(f"has reasoning_content in a {role} message; only the assistant thinks")
    found.append(message)
  return found


def _part(part) -> list[dict]:
  """A content part in our form; a text may hold marks."""
  if not isinstance(part, dict):
    raise ValueError(f"has a content part that is a {type(part).__name__}; give an object")
  part = {k: v for k, v in part.items() if v is not None}
  kind = part.get("type")
  if kind == "text" and isinstance(part.get("text"), str):
    return _split(part["text"])
  if kind == "image":
    return [{**_IMAGE, "image": part["image"]} if "image" in part else dict(_IMAGE)]
  if kind == "image_url" and part.get("image_url"):
    url = part["image_url"]
    return [{**_IMAGE, "image": url.get("url") if isinstance(url, dict) else url}]
  raise ValueError(f"has a content part of type {str(kind)[:40]!r} that cannot be read; use text, image or image_url")


def _split(text: str) -> list[dict]:
  """Text with marks as parts; the line break between a mark and the text goes."""
  pieces, parts = text.split(MARK), []
  for i, piece in enumerate(pieces):
    piece = piece.removeprefix("\n") if i else piece
    piece = piece.removesuffix("\n") if i < len(pieces) - 1 else piece
    parts += [dict(_IMAGE)] * (i > 0) + [{"type": "text", "text": piece}] * bool(piece)
  return parts or [{"type": "text", "text": ""}]


def _llava(said) -> list[dict]:
  if not isinstance(said, list) or not all(isinstance(t, dict) and isinstance(t.get("value"), str) for t in said):
    raise ValueError('has conversations that are no list of {"from", "value"}; mend them')
  unknown = [t.get("from") for t in said if t.get("from") not in tuple(_SPEAKERS)]
  if unknown:
    raise ValueError(f"has a turn from {str(unknown[0])[:40]!r}; use {', '.join(_SPEAKERS)}")
  return turns([{"role": _SPEAKERS[t["from"]], "content": t["value"]} for t in said])


def _interleaved(fields, path) -> Sample:
  texts, images = fields.pop("texts"), fields.pop("images", [])
  if not isinstance(images, list) or len(texts) != len(images) or any((t is None) == (i is None) for t, i in zip(texts, images)):
    raise ValueError("has texts and images that do not alternate; give lists of equal length with one of the two at every place")
  if any(not isinstance(t, str) or MARK in t for t in texts if t is not None):
    raise ValueError(f"has {MARK} or no text in its texts; the place in the list says where an image stands")
  pieces = [MARK if t is None else ("\n\n" if i and texts[i - 1] is not None else "") + t for i, t in enumerate(texts)]
  return _finish({**fields, "images": [i for i in images if i is not None]}, path, "texts", text="".join(pieces))


def _preference(fields, path) -> Sample:
  """Messages are what both answers share; meta holds each answer's own, as "chosen" and "rejected"."""
  with faults.of("conversation"):
    answers = {k: _side(fields.pop(k, None), "assistant", k) for k in ("chosen", "rejected")}
    if "prompt" in fields:
      prompt = _side(fields.pop("prompt"), "user", "prompt")
      answers = {k: a[len(prompt) :] if a[: len(prompt)] == prompt else a for k, a in answers.items()}
    else:
      n = next((i for i, (a, b) in enumerate(zip(*answers.values())) if a != b), min(map(len, answers.values())))
      prompt, answers = answers["chosen"][:n], {k: a[n:] for k, a in answers.items()}
    if not prompt or prompt[-1]["role"] != "user" or any(not a or a[-1]["role"] != "assistant" for a in answers.values()):
      raise ValueError("is no preference; give a prompt that ends with the user, and two different answers of the assistant")
    if answers["chosen"] == answers["rejected"]:
      raise ValueError("has the same answer chosen and rejected; leave it out")
    if any(isinstance(m["content"], list) for a in answers.values() for m in a):
      raise ValueError("has an image in an answer; only the prompt shows images")
    found = _finish(fields, path, "prompt", messages=prompt)
  found.meta.update(answers)
  return found


def _side(value, role: str, name: str) -> list[dict]:
  if isinstance(value, str):
    value = [{"role": role, "content": value}]
  if not value:
    raise ValueError(f"has no {name}; give text or messages")
  return turns(value)


def _bytes(image, path: str) -> bytes:
  """The encoded file that an image field stands for."""
  if isinstance(image, dict):
    image = image.get("bytes") or image.get("path")
  if isinstance(image, bytes):
    return image
  if not isinstance(image, str) or not image:
    raise ValueError(f"has an image that is a {type(image).__name__}; give a path, a data URI or bytes")
  protocol, url, _ = image.partition("://")
  if url and protocol not in (*_NEAR, path.partition("://")[0]):
    raise ValueError(f"has its image at {image[:80]}; download it and give its path")
  if image.startswith("data:") or image.startswith(_BASE64) and len(image) > 200:
    try:
      return base64.b64decode(image.partition(",")[2] if image.startswith("data:") else image, validate=True)
    except binascii.Error as e:
      raise ValueError("has an image that is no base64; encode it again") from e
  place = files.beside(path, image)
  try:
    return files.read(place)
  except OSError as e:
    if e.errno not in _NO_FILE and not isinstance(e, FileNotFoundError):
      raise  # a disk or a network that fails is not the record's fault
    raise ValueError(f"has its image at {place[:200]}, where none can be read; check the path") from e
