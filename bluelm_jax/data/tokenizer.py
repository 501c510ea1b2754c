"""A HuggingFace tokenizer.json with the ids this project needs."""

import functools
import hashlib
import json
import pathlib
import re
from typing import Sequence

import tokenizers

ASSET = pathlib.Path(__file__).parent / "assets" / "tokenizer.json"
FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
_END_NAMES = ("<|endoftext|>", "<|im_end|>", "</s>", "<|end_of_text|>", "<eos>")


class Tokenizer:
  """Encodes text to ids; special tokens written in the text become their own ids.

  Attributes:
    end_id: the token that ends a text, by its name or else the first of those given.
    end_ids: every token at which an answer ends.
    pad_id: `<|pad|>`, or the end token.
    template: the Jinja chat template beside it, "" without one.
    named: "eos_token" and other special tokens that tokenizer_config.json names for it.
  """

  def __init__(self, path=ASSET, end_ids: Sequence[int] = ()):
    """`end_ids`: token ids that end an answer beside those known by name."""
    path = pathlib.Path(path)
    if not path.is_file():
      raise ValueError(f"no tokenizer at {path}; copy the model's tokenizer.json there")
    self.path = path
    try:
      self._tokenizer = tokenizers.Tokenizer.from_file(str(path))
    except Exception as e:  # the library raises nothing narrower
      raise ValueError(f"{path} is not a tokenizer ({' '.join(str(e).split())[:100]}); download it again") from e
    self._tokenizer.no_truncation()
    self._tokenizer.no_padding()
    settings = _settings(path.parent / "tokenizer_config.json")
    self.named = {k: v for k, v in settings.items() if k.endswith("_token") and isinstance(v, str)}
    file = path.parent / "chat_template.jinja"
    self.template = file.read_text("utf-8") if file.is_file() else settings.get("chat_template") or ""
    end_ids = (*end_ids, *(i for i in [self._tokenizer.token_to_id(self.named.get("eos_token", ""))] if i is not None))
    named = [i for i in map(self._tokenizer.token_to_id, _END_NAMES) if i is not None]
    if not named and not end_ids:
      raise ValueError(f"{path} has no end token; add one of {', '.join(_END_NAMES)}")
    self.end_id = [*named, *end_ids][0]
    self.end_ids = tuple(dict.fromkeys((self.end_id, *end_ids)))
    pad_id = self._tokenizer.token_to_id("<|pad|>")
    self.pad_id = self.end_id if pad_id is None else pad_id

  @functools.cached_property
  def vocab_size(self) -> int:
    """Rows that an embedding needs."""
    return max(self.ids().values()) + 1

  @functools.cached_property
  def digest(self) -> str:
    """Tells whether two are the same."""
    return hashlib.sha256(self.path.read_bytes()).hexdigest()

  def ids(self) -> dict[str, int]:
    """Of every token by its text."""
    return self._tokenizer.get_vocab()

  def files(self) -> dict[str, bytes]:
    """What a copy of this tokenizer needs, by name."""
    beside = {n: self.path.with_name(n) for n in FILES[1:]}
    return {FILES[0]: self.path.read_bytes(), **{n: p.read_bytes() for n, p in beside.items() if p.is_file()}}

  def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
    """Token ids; `add_special_tokens` adds what the tokenizer puts around a text, such as BOS."""
    return self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids

  def encode_from(self, text: str, place: int) -> list[int]:
    """Token ids from the token on to which the character at `place` belongs."""
    found = self._tokenizer.encode(text, add_special_tokens=False)
    first = next((t for t in map(found.char_to_token, range(place, len(text))) if t is not None), len(found.ids))  # signs may be no token's
    return found.ids[first:]

  def cut(self, text: str, markers: Sequence[str], sign: str) -> str:
    """The text with `sign` behind the first character of each special token or marker in it: encoded apart, the pieces are mere text."""
    return self._marks(tuple(markers)).sub(lambda found: found[0][0] + sign + found[0][1:], text)

  @functools.cache
  def _marks(self, markers: tuple[str, ...]) -> re.Pattern:
    special = {t.content for t in self._tokenizer.get_added_tokens_decoder().values() if t.special} | set(markers)
    return re.compile("|".join(map(re.escape, sorted(special, key=len, reverse=True))))

  def decode(self, ids, skip_special: bool = False) -> str:
    return self._tokenizer.decode(list(map(int, ids)), skip_special_tokens=skip_special)

  def has(self, token: str) -> bool:
    return self._tokenizer.token_to_id(token) is not None

  @functools.cache
  def special_id(self, token: str) -> int:
    token_id = self._tokenizer.token_to_id(token)
    if token_id is None:
      raise ValueError(f"{self.path} has no token {token!r}; add it to the tokenizer")
    return token_id


def _settings(path: pathlib.Path) -> dict:
  """tokenizer_config.json with its tokens as text and one chat template; {} where there is none."""
  if not path.is_file():
    return {}
  try:
    found = {k: v.get("content") if isinstance(v, dict) else v for k, v in json.loads(path.read_text("utf-8")).items()}
    if isinstance(found.get("chat_template"), list):  # of named templates
      found["chat_template"] = {t["name"]: t["template"] for t in found["chat_template"]}.get("default")
    return found
  except (ValueError, AttributeError, KeyError, TypeError) as e:
    raise ValueError(f"{path} is damaged ({' '.join(str(e).split())[:80]}); download it again") from e
