"""A HuggingFace tokenizer.json with the ids this project needs."""

import functools
import pathlib

import tokenizers

ASSET = pathlib.Path(__file__).parent / "assets" / "tokenizer.json"
_END_NAMES = ("<|endoftext|>", "<|im_end|>", "</s>", "<|end_of_text|>", "<eos>")


class Tokenizer:
  """Encodes text to ids; special tokens written in the text become their own ids."""

  def __init__(self, path=ASSET):
    path = pathlib.Path(path)
    if not path.is_file():
      raise ValueError(f"no tokenizer at {path}; copy the model's tokenizer.json there")
    self.path = path
    self._tokenizer = tokenizers.Tokenizer.from_file(str(path))
    ids = [i for i in map(self._tokenizer.token_to_id, _END_NAMES) if i is not None]
    if not ids:
      raise ValueError(f"{path} has no end token; add one of {', '.join(_END_NAMES)}")
    self.end_id = ids[0]
    pad_id = self._tokenizer.token_to_id("<|pad|>")
    self.pad_id = self.end_id if pad_id is None else pad_id

  @property
  def vocab_size(self) -> int:
    return self._tokenizer.get_vocab_size()

  def encode(self, text: str) -> list[int]:
    return self._tokenizer.encode(text, add_special_tokens=False).ids

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
