"""What the endpoints share: the model, the worker, the limits, and who may come in."""

import concurrent.futures
import contextlib

from bluelm_jax.data import chat
from bluelm_jax.inference.server import bodies
from bluelm_jax.inference.server.errors import Refusal
from bluelm_jax.inference.server.limits import Limits
from bluelm_jax.inference.server.metrics import Metrics
from bluelm_jax.inference.server.worker import Worker

_READERS = 2  # threads that decode images and tokenise


class Service:
  """One model behind HTTP.

  Attributes:
    context: tokens of a prompt and its answer, at most.
    thinks: whether the model can.
    readers: threads in which requests are understood.
    draining: no new requests come in.
    in_flight: requests that are in.
  """

  def __init__(self, speaker, name: str, limits: Limits = Limits()):
    """`speaker`: a conversation.Speaker; `name`: of the model for clients."""
    self.speaker, self.name, self.limits = speaker, name, limits
    self.context, self.thinks = speaker.engine.max_context, speaker.think is not None
    self.tile_size = speaker.chat.anyres.tile_size if speaker.chat.anyres else 1
    self.worker, self.metrics = Worker(speaker.engine), Metrics()
    self.readers = concurrent.futures.ThreadPoolExecutor(_READERS, "reader")
    self.draining, self.in_flight = False, 0
    tokenizer = speaker.tokenizer
    self._images = {tokenizer.special_id(m) for m in chat.IMAGE_MARKERS if tokenizer.has(m)}

  @contextlib.contextmanager
  def place(self):
    """A place for one request, as long as it lasts. Refusal where there is none."""
    if self.worker.failure:
      raise Refusal(503, "the engine has failed; restart the server")
    if self.draining:
      raise Refusal(503, "the server is stopping; ask another one", headers={"Retry-After": "10"})
    if self.in_flight >= self.limits.requests:
      raise Refusal(429, f"{self.in_flight} requests are waiting or running; try again later", headers={"Retry-After": "1"})
    self.in_flight += 1
    self.metrics.in_flight.set(self.in_flight)
    try:
      yield
    finally:
      self.in_flight -= 1
      self.metrics.in_flight.set(self.in_flight)

  def check_model(self, fields: bodies.Fields) -> None:
    """Takes the field `model`; one that is not served is a 404."""
    self.check_name(fields.take("model", str, self.name))

  def check_name(self, model: str) -> None:
    if model != self.name:
      raise Refusal(404, f"no model {model[:100]!r} here; ask for {self.name!r}", "model", "model_not_found")

  def encode(self, text: str) -> list[int]:
    """A plain text's ids, begun as the tokenizer begins texts."""
    if len(text) > self.limits.text_characters:
      raise Refusal(400, f"the prompt has over {self.limits.text_characters} characters; shorten it", "prompt", "context_length_exceeded")
    return self.speaker.tokenizer.encode(bodies.whole(text, "prompt"), add_special_tokens=True)

  def check_ids(self, fields: bodies.Fields, name: str, value) -> list[int]:
    """Token ids without any that stand for a part of an image."""
    found = bodies.ids(fields, name, value, self.speaker.tokenizer.vocab_size)
    if self._images.intersection(found):
      raise fields.refusal(name, "holds ids that stand for images; show images through /v1/chat/completions")
    return found
