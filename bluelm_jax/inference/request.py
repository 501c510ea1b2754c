"""What is asked of the engine, and what it says."""

import dataclasses
from typing import NamedTuple, Sequence

import numpy as np

from bluelm_jax.data.batch import Example

MOST_TOP_LOGPROBS = 20
MOST_BANNED = 64


@dataclasses.dataclass(frozen=True)
class Options:
  """How to answer one prompt.

  Attributes:
    max_tokens: at most this many new tokens, thinking included.
    temperature: 0 is greedy.
    top_k: keep the k likeliest tokens; 0 keeps all.
    top_p: keep the likeliest tokens up to this mass (arXiv 1904.09751).
    min_p: keep tokens at least this likely, as a share of the likeliest one (arXiv 2407.01082).
    repetition_penalty: logits of tokens seen before, in the prompt too, are divided by it, negative ones multiplied (arXiv 1909.05858).
    seed: 32 bits; sample i of n draws by (seed, i, place in the sequence), whatever else runs beside it, up to rounding.
    n: independent samples of the prompt.
    stop: texts at which an answer ends, before the first of them.
    stop_ids: token ids at which it ends; None means the model's end tokens.
    banned: token ids never produced, beside image placeholders.
    thinking: whether the model may think before it answers; off, it cannot open a thought.
    thinking_token_budget: tokens of thought at most, 0 closes a thought at once; None: as many as leave room for the answer.
    answer_tokens: of max_tokens, what thinking leaves to the answer; None means a quarter of them, 64 at most.
    top_logprobs: how many likeliest tokens to report beside each token.
  """

  max_tokens: int = 256
  temperature: float = 0.0
  top_k: int = 0
  top_p: float = 1.0
  min_p: float = 0.0
  repetition_penalty: float = 1.0
  seed: int = 0
  n: int = 1
  stop: tuple[str, ...] = ()
  stop_ids: tuple[int, ...] | None = None
  banned: tuple[int, ...] = ()
  thinking: bool = False
  thinking_token_budget: int | None = None
  answer_tokens: int | None = None
  top_logprobs: int = 0

  def __post_init__(self):
    def check(good: bool, complaint: str):
      if not good:
        raise ValueError(complaint)

    check(self.max_tokens >= 1, f"max_tokens must be at least 1, not {self.max_tokens}")
    check(self.temperature == 0 or 1e-6 <= self.temperature <= 1e6, f"temperature must be 0 or from 1e-6 to 1e6, not {self.temperature}")
    check(self.top_k >= 0, f"top_k must be 0 or more, not {self.top_k}")
    check(0 < self.top_p <= 1, f"top_p must be above 0 and at most 1, not {self.top_p}")
    check(0 <= self.min_p <= 1, f"min_p must be from 0 to 1, not {self.min_p}")
    check(1e-6 <= self.repetition_penalty <= 1e6, f"repetition_penalty must be from 1e-6 to 1e6, not {self.repetition_penalty}")
    check(0 <= self.seed < 2**32, f"seed {self.seed} is out of range; use 0 to {2**32 - 1}")
    check(self.n >= 1, f"n must be at least 1, not {self.n}")
    check(all(self.stop), "a stop text is empty; leave it out")
    check(len(self.banned) <= MOST_BANNED, f"{len(self.banned)} banned ids are too many; give at most {MOST_BANNED}")
    budget, room = self.thinking_token_budget, self.answer_tokens
    check(budget is None or (self.thinking and budget >= 0), f"thinking_token_budget {budget} needs thinking, and must be 0 or more")
    check(room is None or (self.thinking and room >= 1), f"answer_tokens {room} needs thinking, and must be at least 1")
    # A thought costs two tokens of its own, which open and close it.
    most = self.max_tokens - 2
    check(not self.thinking or self.room <= most, f"max_tokens {self.max_tokens} leaves no room to think and to answer; give at least {self.room + 2}")
    check(0 <= self.top_logprobs <= MOST_TOP_LOGPROBS, f"top_logprobs must be from 0 to {MOST_TOP_LOGPROBS}, not {self.top_logprobs}")

  @property
  def room(self) -> int:
    """Tokens that thinking leaves to the answer."""
    return min(64, max(1, self.max_tokens // 4)) if self.answer_tokens is None else self.answer_tokens


class Token(NamedTuple):
  """One token of one sample, as `Engine.step` reports it.

  Attributes:
    request: what `Engine.submit` returned.
    sample: 0 to n - 1.
    token: its id; an end token is reported too, with the finish that it is.
    logprob: of the token under the model alone (temperature 1, nothing masked).
    behaviour_logprob: of the token under the distribution that it was drawn from; 0 where it was forced or greedy.
    phase: "think" (a thought and the tokens that open and close it) or "answer".
    forced: set by the thinking budget, so no loss may be taken on it.
    version: of the weights that made it.
    top: the likeliest (id, logprob), as many as asked for.
    finish: None, "stop" (an end token) or "length" (max_tokens).
  """

  request: int
  sample: int
  token: int
  logprob: float
  behaviour_logprob: float
  phase: str
  forced: bool
  version: int
  top: tuple[tuple[int, float], ...] = ()
  finish: str | None = None


class Request(NamedTuple):
  """A prompt in the engine; `digests` tell its tiles apart, see `images.digests`, and `asks` what its draws need, see `sampling.asks_of`."""

  id: int
  prompt: Example
  options: Options
  stop_ids: frozenset[int]
  digests: list[bytes]
  asks: int


def plain_prompt(ids: Sequence[int], tile_size: int = 1) -> Example:
  """A prompt of token ids without images."""
  ids = np.asarray(ids, np.int32)
  none = np.zeros((0, tile_size, tile_size, 3), np.uint8)
  return Example(ids, ids, np.zeros(len(ids), np.float32), np.full(len(ids), -1, np.int32), none, np.zeros(0, np.int32))
