"""Rows of JSON data sets to Samples: documents, conversations in the OpenAI form and in LLaVA's.

  {"text": ...}                                                       (also "content"; "repository" or "book", and "path" in it, are kept)
  {"messages": [{"role": "user", "content": ... or parts}, ...]}      (image parts: data: URLs, or paths)
  {"image": "a.png", "conversations": [{"from": "human", "value": "<image>\n..."}, ...]}

In a Sample an image part is {"type": "image"}; the n-th stands for the n-th of its images.
"""

import base64
import pathlib
import re
from typing import Any, Mapping

from bluelm_jax.data.sample import Sample

_LLAVA = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
_ROLES = ("system", "user", "assistant")
_PLACE = ("repository", "book", "path")


def sample(row: Mapping[str, Any], source: str, licence: str, folder: str) -> Sample:
  """One row as a Sample; paths of images are relative to `folder`.

  Raises:
    ValueError: the row is none of these, a turn is malformed, or an image is absent.
  """
  if not isinstance(row, Mapping):
    raise ValueError(f"a row is a {type(row).__name__}; give JSON objects")
  licence = row["licence"] if isinstance(row.get("licence"), str) else licence
  text = row.get("text") or row.get("content")
  if isinstance(text, str):
    return Sample(source, licence, text, meta={key: row[key] for key in _PLACE if isinstance(row.get(key), str)})
  if row.get("messages"):
    messages, images = _openai(row["messages"], folder)
  elif row.get("conversations"):
    messages, images = _llava(row, folder)
  else:
    raise ValueError(f"a row has keys {', '.join(map(str, row))[:80]}; it needs text, messages or conversations")
  roles = [m["role"] for m in messages if m["role"] != "system"]
  if roles != ["user", "assistant"] * (len(roles) // 2) or not roles:
    raise ValueError(f"turns are {', '.join(roles)[:60]}; user and assistant must alternate and the assistant must end")
  return Sample(source, licence, messages=tuple(messages), images=tuple(images))


def _openai(turns, folder: str):
  messages, images = [], []
  for turn in turns:
    if not isinstance(turn, Mapping) or turn.get("role") not in _ROLES:
      raise ValueError(f"a message is {str(turn)[:60]!r}; its role must be one of {', '.join(_ROLES)}")
    content = turn.get("content")
    if isinstance(content, list):
      content = [_part(part, images, folder) for part in content]
    elif not isinstance(content, str):
      raise ValueError(f"a message has content {str(content)[:40]!r}; give a string or a list of parts")
    thinking = {"reasoning_content": turn["reasoning_content"]} if isinstance(turn.get("reasoning_content"), str) else {}
    messages.append({"role": turn["role"], "content": content, **thinking})
  return messages, images


def _part(part, images: list[bytes], folder: str) -> dict[str, str]:
  kind = part.get("type") if isinstance(part, Mapping) else None
  if kind == "text" and isinstance(part.get("text"), str):
    return {"type": "text", "text": part["text"]}
  if kind in ("image", "image_url"):
    where = part.get("image_url") or part.get("image")
    images.append(_image(where.get("url") if isinstance(where, Mapping) else where, folder))
    return {"type": "image"}
  raise ValueError(f"a content part is {str(part)[:60]!r}; use text, image or image_url")


def _llava(row, folder: str):
  given = row.get("image") or row.get("images") or []
  images = [_image(where, folder) for where in ([given] if isinstance(given, str) else given)]
  messages, used = [], 0
  for turn in row["conversations"]:
    if not isinstance(turn, Mapping) or turn.get("from") not in _LLAVA or not isinstance(turn.get("value"), str):
      raise ValueError(f"a turn is {str(turn)[:60]!r}; it needs from (human, gpt or system) and value")
    content = turn["value"]
    if "<image>" in content and _LLAVA[turn["from"]] == "user":
      pieces = re.split(r"\s*<image>\s*", content)
      content = [p for i, piece in enumerate(pieces) for p in ([{"type": "image"}] if i else []) + ([{"type": "text", "text": piece}] if piece else [])]
      used += len(pieces) - 1
    messages.append({"role": _LLAVA[turn["from"]], "content": content})
  if used != len(images):
    raise ValueError(f"{used} <image> marks stand for {len(images)} images; they must be as many")
  return messages, images


def _image(where, folder: str) -> bytes:
  if not isinstance(where, str):
    raise ValueError(f"an image is given as {str(where)[:40]!r}; give a path or a data: URL")
  if where.startswith("data:"):
    try:
      return base64.b64decode(where.split(",", 1)[1], validate=True)
    except (IndexError, ValueError) as e:
      raise ValueError("a data: URL is damaged; write data:image/png;base64,...") from e
  path = pathlib.Path(folder) / where
  if "://" in where or not path.is_file():
    raise ValueError(f"no image at {where}; give a path relative to the file, or a data: URL (nothing is downloaded)")
  return path.read_bytes()
