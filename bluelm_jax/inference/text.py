"""Tokens of one answer to its text, as they come."""

from typing import NamedTuple
from typing import Sequence

from bluelm_jax.data import chat
from bluelm_jax.data.tokenizer import Tokenizer
from bluelm_jax.inference.request import Token

_UNKNOWN = "\ufffd"  # what decoders write for bytes that are no character, or not one yet
_CHARACTER_BYTES = 4


class Piece(NamedTuple):
  """Text that is settled.

  Attributes:
    phase: "think" or "answer", as Token has it.
  """

  phase: str
  text: str


class Writer:
  """Writes down one sample. End tokens and the markers around a thought are left out.

  Attributes:
    finish: None while more may come; "stop" after an end token or a stop text, or "length".
  """

  def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()):
    """`stop`: texts of which the first one found ends the answer, before it. They are not looked for in a thought."""
    marks = (m for m in (chat.THINK_OPEN, chat.THINK_CLOSE) if tokenizer.has(m))
    self._silent = {*tokenizer.end_ids, *map(tokenizer.special_id, marks)}
    self._characters, self._stop = _Characters(tokenizer), stop
    self._phase, self._held = "answer", ""
    self.finish: str | None = None

  def add(self, token: Token) -> list[Piece]:
    """The text that `token` settles. Tokens behind the end say nothing."""
    if self.finish:
      return []
    before = []
    if token.phase != self._phase:
      before, self._phase = self._rest(), token.phase
    if token.token not in self._silent and token.finish != "stop":
      self._held += self._characters.add(token.token)
    pieces = self._settled()
    if token.finish and not self.finish:
      pieces += self._rest()
      self.finish = self.finish or token.finish
    return before + pieces

  def _settled(self) -> list[Piece]:
    """What no stop text can still begin in."""
    stop = self._stop if self._phase == "answer" else ()
    found = [at for s in stop if (at := self._held.find(s)) >= 0]
    if found:
      self.finish = "stop"
      text, self._held = self._held[: min(found)], ""
      return self._piece(text)
    most = min(max(map(len, stop), default=1) - 1, len(self._held))
    kept = next((n for n in range(most, 0, -1) if any(s.startswith(self._held[-n:]) for s in stop)), 0)
    text, self._held = self._held[: len(self._held) - kept], self._held[len(self._held) - kept :]
    return self._piece(text)

  def _rest(self) -> list[Piece]:
    """All that was held back, when nothing more can come to it."""
    self._held += self._characters.rest()
    settled = self._settled()
    text, self._held = self._held, ""
    return settled + self._piece(text)

  def _piece(self, text: str) -> list[Piece]:
    return [Piece(self._phase, text)] if text else []


class _Characters:
  """Whole characters out of tokens that may end within one."""

  def __init__(self, tokenizer: Tokenizer):
    self._tokenizer = tokenizer
    # The last tokens that are written, since some tokenizers drop the space before a first word, and those behind them.
    self._ids, self._written, self._shown = [], 0, 0

  def add(self, token_id: int) -> str:
    self._ids.append(token_id)
    text = self._tokenizer.decode(self._ids)
    open_ = len(text) - len(text.rstrip(_UNKNOWN))
    if open_ <= 2 * _CHARACTER_BYTES:  # more than that is no beginning of a character
      text = text[: len(text) - min(open_, _CHARACTER_BYTES - 1)]
    new = text[self._shown :]
    self._shown = max(self._shown, len(text))
    if not open_ or open_ > 2 * _CHARACTER_BYTES:
      self._ids = self._ids[self._written :]
      self._written, self._shown = len(self._ids), len(self._tokenizer.decode(self._ids))
    return new

  def rest(self) -> str:
    """What is left, though it may be no character; the next token begins anew."""
    text = self._tokenizer.decode(self._ids)[self._shown :]
    self._ids, self._written, self._shown = [], 0, 0
    return text
