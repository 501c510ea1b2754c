"""Our chat format, and conversations to Examples.

  [|Human|]:<im_start><tile_0><image>...<image><im_end>question[|BlueThink|][|AI|]:<think>...</think>answer<|endoftext|>

`[|BlueThink|]` closes a user turn whose answer opens with `<think>`; without it the answer comes at
once. Where BlueLM places the switch, and its chat markers, are not published: these are ours.
"""

import numpy as np

from bluelm_jax.data import anyres
from bluelm_jax.data.batch import Example
from bluelm_jax.data.tokenizer import Tokenizer
from bluelm_jax.models.config import AnyResConfig

ROLES = {"system": "[|System|]:", "user": "[|Human|]:", "assistant": "[|AI|]:"}
THINK_SWITCH = "[|BlueThink|]"
THINK_OPEN, THINK_CLOSE = "<think>", "</think>"
IMAGE_MARKERS = ("<im_start>", "<image>", "<im_end>", *(f"<tile_{i}>" for i in range(16)), "<thumbnail>")
MARKERS = (*ROLES.values(), THINK_SWITCH, THINK_OPEN, THINK_CLOSE, *IMAGE_MARKERS)


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

  def example(self, messages, source: int = 0) -> Example:
    """A training example: loss on assistant turns, their thinking included."""
    return self._build(messages).example(source)

  def prompt(self, messages, thinking: bool) -> Example:
    """Everything up to where the assistant starts to speak; `tokens` is the prompt."""
    return self._build(messages, thinking).example()

  def _build(self, messages, thinking: bool | None = None) -> "_Builder":
    if not messages or not isinstance(messages, (list, tuple)):
      raise ValueError("the conversation is empty or no list; give at least one user message")
    out = _Builder(self)
    for i, message in enumerate(messages):
      role = _part(message, "role", str)
      if role not in ROLES:
        raise ValueError(f"unknown chat role {role!r}; use {', '.join(ROLES)}")
      out.text(ROLES[role], loss=False)
      if role == "assistant":
        if message.get("reasoning_content") is not None:
          out.text(THINK_OPEN + _part(message, "reasoning_content", str) + THINK_CLOSE, loss=True)
        out.text(_part(message, "content", str), loss=True)
        out.token(self.tokenizer.end_id, loss=True)
        continue
      out.content(_part(message, "content", (str, list, tuple)))
      following = messages[i + 1] if i + 1 < len(messages) else None
      if following is None and thinking is None and role == "user":
        raise ValueError("the conversation ends with a user turn; a training example needs the answer")
      think = thinking if following is None else isinstance(following, dict) and following.get("reasoning_content") is not None
      if role == "user" and think:
        out.text(THINK_SWITCH, loss=False)
    if thinking is not None:
      if messages[-1]["role"] == "assistant":
        raise ValueError("the conversation ends with the assistant; a prompt must end with a user turn")
      out.text(ROLES["assistant"], loss=False)
      out.token(self.tokenizer.pad_id, loss=False)  # a prompt's last token is kept by the shift
    return out


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
    for token_id in self.chat.tokenizer.encode(text):
      self.token(token_id, loss)

  def content(self, content):
    if isinstance(content, str):
      return self.text(content, loss=False)
    for part in content:
      kind = _part(part, "type", str)
      if kind == "text":
        self.text(_part(part, "text", str), loss=False)
      elif kind == "image":
        self.image(_part(part, "image", np.ndarray))
      else:
        raise ValueError(f"unknown content part {kind!r}; use text or image")

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

  def example(self, source: int = 0) -> Example:
    size = self.chat.anyres.tile_size if self.chat.anyres else 1
    ids = np.asarray(self.ids, np.int32)
    return Example(
        tokens=ids[:-1],
        targets=ids[1:],
        loss_weights=np.asarray(self.loss[1:], np.float32),
        vision_index=np.asarray(self.vision[:-1], np.int32),
        tiles=np.stack(self.tiles) if self.tiles else np.zeros((0, size, size, 3), np.uint8),
        tile_places=np.asarray(self.places, np.int32),
        source=source,
    )
