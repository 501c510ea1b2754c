"""Conversations and documents with images to Examples.

A tokenizer that brings a Jinja chat template is written to as that says (`template.py`; `enable_thinking` is its switch), with
images as below. Others get our format:

  [|Human|]:<im_start><tile_0><image>...<image><im_end>question[|BlueThink|][|AI|]:<think>...</think>answer<|endoftext|>

`[|BlueThink|]` closes a user turn whose answer opens with `<think>`; without it the answer comes at
once. Where BlueLM places the switch, and its chat markers, are not published: these are ours.

Either way loss lies on what the assistant says, its thinking and the token that ends it included.
"""

from typing import Sequence

import numpy as np

from bluelm_jax.data import anyres
from bluelm_jax.data import template as template_lib
from bluelm_jax.data.batch import Example
from bluelm_jax.data.tokenizer import Tokenizer
from bluelm_jax.models.config import AnyResConfig

ROLES = {"system": "[|System|]:", "user": "[|Human|]:", "assistant": "[|AI|]:"}
THINK_SWITCH = "[|BlueThink|]"
THINK_OPEN, THINK_CLOSE = "<think>", "</think>"
IMAGE_MARKERS = ("<im_start>", "<image>", "<im_end>", *(f"<tile_{i}>" for i in range(16)), "<thumbnail>")
MARKERS = (*ROLES.values(), THINK_SWITCH, THINK_OPEN, THINK_CLOSE, *IMAGE_MARKERS)
_CUT = "\ufdd0"  # a code point that is no character, and in no text: what stands on its two sides is encoded apart


class ChatFormat:
  """Turns conversations into token ids and tiles for one model.

  Messages follow the OpenAI form: {"role", "content"}, content a string or a list of parts
  {"type": "text", "text": ...} and {"type": "image", "image": uint8 RGB [H, W, 3]}. An assistant's
  "reasoning_content" is its thinking; it sets the switch of the turn before.
  """

  def __init__(self, tokenizer: Tokenizer, anyres_config: AnyResConfig | None, tokens_per_tile: int):
    self.tokenizer = tokenizer
    self.anyres = anyres_config
    self.tokens_per_tile = tokens_per_tile
    self.template = template_lib.Template(tokenizer.template, tokenizer.named) if tokenizer.template else None

  def example(self, messages, source: int = 0, loss_from: int = 0) -> Example:
    """A training example: loss on assistant turns, their thinking included, from message `loss_from` on."""
    return self._build(messages, loss_from=loss_from).example(source)

  def prompt(self, messages, thinking: bool, special: bool = True) -> Example:
    """Everything up to where the assistant starts to speak; `tokens` is the prompt.

    Args:
      special: whether special tokens and markers written in a message are those tokens; False, for strangers' messages: mere text.
    """
    return self._build(messages if special else self._cut(messages), thinking).example()

  def pieces(self, text: str) -> list[str]:
    """A stranger's text in pieces that, encoded apart, hold no special token and no marker."""
    if _CUT in text:
      raise ValueError("a message holds U+FDD0, which is no character; leave it out")
    return self.tokenizer.cut(text, MARKERS, _CUT).split(_CUT)

  def _cut(self, messages):
    """Messages in whose texts no special token can be read; what is no message is left to be refused."""
    one = lambda text: _CUT.join(self.pieces(text))

    def content(found):
      if isinstance(found, str):
        return one(found)
      if not isinstance(found, (list, tuple)):
        return found
      # Parts are cut from each other, too: a template joins them.
      return [{**p, "text": _CUT * (i > 0) + one(p["text"])} if isinstance(p, dict) and isinstance(p.get("text"), str) else p for i, p in enumerate(found)]

    cut = lambda message: {**message, **{k: content(message[k]) for k in ("content", "reasoning_content") if k in message}}
    return [cut(m) if isinstance(m, dict) else m for m in messages] if isinstance(messages, (list, tuple)) else messages

  def document(self, texts: Sequence[str], pictures: Sequence[np.ndarray], length: int, rng: np.random.Generator, source: int = 0) -> Example:
    """A window of at most `length` tokens of texts with a picture between each two; loss on all text.

    An image across the window's start is taken in whole, one across its end left out; one longer than the window stands alone.
    """
    if len(texts) != len(pictures) + 1:
      raise ValueError(f"marks {len(texts) - 1} images in its text and has {len(pictures)}; give one for each")
    out, images = _Builder(self), []
    for i, text in enumerate(texts):
      if i:
        first = len(out.ids)
        out.image(pictures[i - 1])
        images.append((first, len(out.ids)))
      out.text(text, loss=True)
    out.token(self.tokenizer.end_id, loss=True)
    start = int(rng.integers(max(len(out.ids) - length, 1)))
    start = next((first for first, stop in images if first < start < stop), start)
    end = min(start + length, len(out.ids) - 1)
    end = next((first if first > start else stop for first, stop in images if first < end < stop), end)
    return out.example(source, start, end)

  def _build(self, messages, thinking: bool | None = None, loss_from: int = 0) -> "_Builder":
    if not messages or not isinstance(messages, (list, tuple)):
      raise ValueError("the conversation is empty or no list; give at least one user message")
    for message in messages:
      if (role := _part(message, "role", str)) not in ROLES:
        raise ValueError(f"unknown chat role {role!r}; use {', '.join(ROLES)}")
    if self.template:
      return self._from_template(messages, thinking, loss_from)
    out = _Builder(self)
    for i, message in enumerate(messages):
      role = message["role"]
      out.text(ROLES[role], loss=False)
      if role == "assistant":
        if message.get("reasoning_content") is not None:
          out.text(THINK_OPEN + _part(message, "reasoning_content", str) + THINK_CLOSE, loss=i >= loss_from)
        out.text(_part(message, "content", str), loss=i >= loss_from)
        out.token(self.tokenizer.end_id, loss=i >= loss_from)
        continue
      out.content(_part(message, "content", (str, list, tuple)))
      following = messages[i + 1] if i + 1 < len(messages) else None
      think = thinking if following is None else isinstance(following, dict) and following.get("reasoning_content") is not None
      if role == "user" and think:
        out.text(THINK_SWITCH, loss=False)
    _check_end(messages, thinking)
    if thinking is not None:
      out.text(ROLES["assistant"], loss=False)
      out.token(self.tokenizer.pad_id, loss=False)  # a prompt's last token is kept by the shift
    return out

  def _from_template(self, messages, thinking: bool | None, loss_from: int) -> "_Builder":
    plain, pictures = [], []
    for message in messages:
      parts = _parts(_part(message, "content", str if message["role"] == "assistant" else (str, list, tuple)))
      if any(template_lib.IMAGE in p for p in parts if isinstance(p, str)):
        raise ValueError("a message holds U+FFFC, the sign for an object; leave it out")
      pictures += [p for p in parts if not isinstance(p, str)]
      plain.append({"role": message["role"], "content": "".join(p if isinstance(p, str) else template_lib.IMAGE for p in parts)})
      if message.get("reasoning_content") is not None:
        plain[-1]["reasoning_content"] = _part(message, "reasoning_content", str)
    _check_end(messages, thinking)
    pieces = self.template.pieces(plain) if thinking is None else [(self.template.prompt(plain, thinking), None)]
    if sum(text.count(template_lib.IMAGE) for text, _ in pieces) != len(pictures):
      raise ValueError("the tokenizer's chat template drops or repeats an image; mend it, or remove it to use ours")
    out, shown = _Builder(self), iter(pictures)
    for text, speech in pieces:
      for i, piece in enumerate(text.split(template_lib.IMAGE)):
        if i:
          out.image(next(shown))
        out.text(piece, loss=speech is not None and speech >= loss_from)
    if thinking is not None:
      out.token(self.tokenizer.pad_id, loss=False)  # a prompt's last token is kept by the shift
    return out


def _check_end(messages, thinking: bool | None) -> None:
  """An example ends with what is to be learnt, a prompt before it."""
  role = messages[-1]["role"]
  if thinking is None and role != "assistant":
    raise ValueError(f"the conversation ends with a {role} turn; a training example needs the answer")
  if thinking is not None and role == "assistant":
    raise ValueError("the conversation ends with the assistant; a prompt must end with a user turn")


def _parts(content) -> list[str | np.ndarray]:
  """The texts and images of a message's content."""
  if isinstance(content, str):
    return [content]
  kinds = [_part(part, "type", str) for part in content]
  unknown = [k for k in kinds if k not in ("text", "image")]
  if unknown:
    raise ValueError(f"unknown content part {unknown[0]!r}; use text or image")
  return [_part(part, kind, str if kind == "text" else np.ndarray) for part, kind in zip(content, kinds)]


def _part(holder: dict, name: str, kinds):
  """holder[name]; ValueError where it is absent or of another type."""
  if not isinstance(holder, dict):
    raise ValueError(f"a chat message or a part of its content is a {type(holder).__name__}; give a dict")
  if not isinstance(holder.get(name), kinds):
    raise ValueError(f"a chat message or a part of its content has {name} = {str(holder.get(name))[:40]!r}; see ChatFormat for what it must be")
  return holder[name]


class _Builder:
  """Collects token ids, loss flags, visual indices and tiles."""

  def __init__(self, chat: ChatFormat):
    self.chat, self.ids, self.loss, self.vision, self.tiles, self.places = chat, [], [], [], [], []

  def token(self, token_id: int, loss: bool, vision: int = -1):
    self.ids.append(token_id)
    self.loss.append(loss)
    self.vision.append(vision)

  def text(self, text: str, loss: bool):
    for piece in text.split(_CUT):
      for token_id in self.chat.tokenizer.encode(piece):
        self.token(token_id, loss)

  def content(self, content):
    for part in _parts(content):
      if isinstance(part, str):
        self.text(part, loss=False)
      else:
        self.image(part)

  def image(self, image_HWC: np.ndarray):
    chat = self.chat
    if chat.anyres is None:
      raise ValueError("this model has no vision tower; leave the image out or load a BlueLM checkpoint")
    tiles, (rows, cols), places = anyres.tile_image(image_HWC, chat.anyres)
    special = chat.tokenizer.special_id
    self.token(special("<im_start>"), loss=False)
    first = len(tiles) - rows * cols  # 1 with a thumbnail
    for t in range(len(tiles)):
      self.token(special("<thumbnail>" if t < first else f"<tile_{t - first}>"), loss=False)
      start = len(self.tiles) * chat.tokens_per_tile
      for i in range(chat.tokens_per_tile):
        self.token(special("<image>"), loss=False, vision=start + i)
      self.tiles.append(tiles[t])
      self.places.append(places[t])
    self.token(special("<im_end>"), loss=False)

  def example(self, source: int = 0, start: int = 0, end: int | None = None) -> Example:
    """What was collected, or its tokens `start` to `end` with the tiles they show."""
    size = self.chat.anyres.tile_size if self.chat.anyres else 1
    end = len(self.ids) - 1 if end is None else end
    ids, vision = np.asarray(self.ids, np.int32), np.asarray(self.vision[start:end], np.int32)
    shown = vision[vision >= 0] // self.chat.tokens_per_tile
    tiles = slice(shown[0], shown[-1] + 1) if len(shown) else slice(0)
    return Example(
        tokens=ids[start:end],
        targets=ids[start + 1 : end + 1],
        loss_weights=np.asarray(self.loss[start + 1 : end + 1], np.float32),
        vision_index=np.where(vision >= 0, vision - (tiles.start or 0) * self.chat.tokens_per_tile, -1).astype(np.int32),
        tiles=np.stack(self.tiles[tiles]) if len(shown) else np.zeros((0, size, size, 3), np.uint8),
        tile_places=np.asarray(self.places[tiles], np.int32),
        source=source,
    )
