"""An engine that says what it was told to say, so that the server's own part can be seen."""

import time
import types

from bluelm_jax.data.chat import ChatFormat
from bluelm_jax.data.tokenizer import Tokenizer
from bluelm_jax.inference.request import Token
from bluelm_jax.models import presets

THOUGHT, ANSWER = "so: 你好", "Hello 世界, it is (500,060) and (100,200)(300,400)."
PAGES = 8


class Engine:
  """Has the interface of `inference.engine.Engine`.

  Attributes:
    pace: seconds of a step.
    broken: whether the next step fails.
    detour: what all samples but the first say before the answer.
    cancelled: (request, sample) of samples ended by themselves.
  """

  max_context = 400

  def __init__(self, tokenizer):
    self._tokenizer, self._running, self._next = tokenizer, {}, 0
    self.pace, self.broken, self.updates, self.flushes = 0.0, False, [], 0
    self.detour, self.cancelled = "", []

  @property
  def busy(self) -> bool:
    return bool(self._running)

  def submit(self, prompt, options) -> int:
    if len(prompt.tokens) + options.max_tokens > self.max_context:
      raise ValueError("the prompt is too long; shorten it")
    self._next += 1
    self._running[self._next] = options, {i: iter(self._said(options, self.detour if i else "")) for i in range(options.n)}
    return self._next

  def step(self) -> list[Token]:
    time.sleep(self.pace)
    if self.broken:
      raise RuntimeError("the device is lost")
    tokens = [next(samples[i]) for _, samples in self._running.values() for i in list(samples)]
    tokens = [t._replace(request=r, sample=i) for (r, i), t in zip([(r, i) for r, (_, s) in self._running.items() for i in s], tokens)]
    for token in tokens:
      if token.finish:
        self._running[token.request][1].pop(token.sample)
    self._running = {r: found for r, found in self._running.items() if found[1]}
    return tokens

  def _said(self, options, detour):
    t, version = self._tokenizer, len(self.updates)
    think = [t.special_id("<think>"), *t.encode(THOUGHT), t.special_id("</think>")] if options.thinking else []
    said = [(i, "think") for i in think] + [(i, "answer") for i in [*t.encode(detour + ANSWER), t.end_id]]
    for k, (i, phase) in enumerate(said, 1):
      finish = "stop" if i == t.end_id else "length" if k == options.max_tokens else None
      top = ((i, -0.5), (7, -float("inf")))[: options.top_logprobs]
      yield Token(0, 0, i, -0.5, -0.25, phase, False, version, top, finish)
      if finish:
        return

  def cancel(self, request_id: int, sample: int | None = None) -> None:
    if sample is None:
      self._running.pop(request_id, None)
    elif request_id in self._running:
      self._running[request_id][1].pop(sample, None)
      self.cancelled.append((request_id, sample))

  def update_weights(self, version: int, params) -> None:
    self.updates.append((version, params))

  def flush(self) -> None:
    self.flushes += 1

  def stats(self) -> dict:
    return dict(waiting=0, running=len(self._running), pages_free=PAGES - len(self._running), pages_total=PAGES, prefix_tokens=3)


def speaker():
  config, tokenizer = presets.miniature(), Tokenizer()
  chat = ChatFormat(tokenizer, config.anyres, config.tokens_per_tile)
  model = types.SimpleNamespace(config=config)
  return types.SimpleNamespace(model=model, tokenizer=tokenizer, chat=chat, engine=Engine(tokenizer), think=(), prompt=chat.prompt)
