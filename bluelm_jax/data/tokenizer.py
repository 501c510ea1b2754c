"""A HuggingFace tokenizer.json with the ids this project needs."""

import functools
import pathlib
from typing import Sequence

import tokenizers

ASSET = pathlib.Path(__file__).parent / "assets" / "tokenizer.json"
_END_NAMES = ("<|endoftext|>", "<|im_end|>", "</s>", "<|end_of_text|>", "<eos>")


class Tokenizer:
  """Encodes text to ids; special tokens written in the text become their own ids.

  Attributes:
    end_id: the token that ends a text, by its name or else the first of those given.
    end_ids: every token at which an answer ends.
    pad_id: `<|pad|>`, or the end token.
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
    return max(self._tokenizer.get_vocab().values()) + 1

  def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
    """Token ids; `add_special_tokens` adds what the tokenizer puts around a text, such as BOS."""
    return self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids

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
