"""/v1/chat/completions."""

import time
import uuid

from bluelm_jax.inference import text
from bluelm_jax.inference.server import asking
from bluelm_jax.inference.server import bodies
from bluelm_jax.inference.server import frames
from bluelm_jax.inference.server import logprobs
from bluelm_jax.inference.server import messages
from bluelm_jax.inference.server.asking import Asked
from bluelm_jax.inference.server.errors import Refusal
from bluelm_jax.inference.server.usage import Usage

_KEYS = {"think": "reasoning_content", "answer": "content"}


def read(fields: bodies.Fields, service) -> Asked:
  """Understands a request, its images decoded and its prompt made."""
  limits, speaker = service.limits, service.speaker
  asking.unsupported(fields)
  fields.only(tools=([],), tool_choice=("none", "auto"), functions=([],), function_call=("none",), parallel_tool_calls=(True, False),
              response_format=({"type": "text"},), modalities=(["text"],))
  said = asking.sampling(fields)
  said["stop"] = bodies.strings(fields, "stop", asking.MOST_STOPS)
  stream = asking.streaming(fields)
  shown = fields.take("logprobs", bool, False)
  top = asking.top(fields, "top_logprobs")
  if top is not None and not shown:
    raise fields.refusal("top_logprobs", "needs logprobs = true; leave it out")
  said["thinking"] = _thinking(fields, service)
  said["thinking_token_budget"] = fields.take("thinking_token_budget", int)
  most, older = fields.take("max_completion_tokens", int), fields.take("max_tokens", int)
  if None not in (most, older) and most != older:
    raise fields.refusal("max_tokens", f"is {older} and max_completion_tokens {most}; give one of them")
  found = fields.needed("messages", list)
  if not found:
    raise fields.refusal("messages", "is empty; give at least one user message")
  fields.end()
  prompt = speaker.prompt(messages.read(found, limits, speaker.chat.anyres), said["thinking"], special=False)
  options = asking.options([prompt], older if most is None else most, limits, service.context, top_logprobs=top or 0, **said)
  return Asked([prompt], options, logprobs=(top or 0) if shown else None, **stream)


def _thinking(fields, service) -> bool:
  """Said at the top, in the template's arguments, or by a budget; off where nothing is said."""
  template = bodies.Fields(fields.take("chat_template_kwargs", dict, {}), "chat_template_kwargs.")
  said = {fields.take("thinking", bool), template.take("enable_thinking", bool)} - {None}
  template.end()
  if len(said) > 1:
    raise fields.refusal("thinking", "and chat_template_kwargs.enable_thinking differ; give one of them")
  budget = fields.has("thinking_token_budget")
  if said == {False} and budget:
    raise fields.refusal("thinking_token_budget", "needs thinking = true; leave it out")
  thinking = True in said or budget
  if thinking and not service.thinks:
    raise Refusal(400, "this model does not think; leave thinking and its budget out", "thinking")
  return thinking


class Reply:
  """The answer to one request as OpenAI's API gives it."""

  media_type, frame, closing = "text/event-stream", staticmethod(frames.event), frames.event("[DONE]")

  def __init__(self, asked: Asked, service):
    self._asked, self._tokenizer = asked, service.speaker.tokenizer
    self._head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": service.name}
    self._writers = [text.Writer(self._tokenizer, asked.options.stop) for _ in range(asked.options.n)]
    self._said = [{"role": "assistant", "content": "", "reasoning_content": ""} for _ in self._writers]
    self._logprobs: list[list[dict]] = [[] for _ in self._writers]
    self.usage = Usage(len(asked.prompts[0].tokens))

  @property
  def ended(self) -> bool:
    return all(w.finish for w in self._writers)

  def finished(self, i: int) -> bool:
    return bool(self._writers[i].finish)

  def start(self) -> list[dict]:
    return [self._chunk(i, {"role": "assistant", "content": ""}) for i in range(len(self._writers))]

  def add(self, i: int, token) -> list[dict]:
    """Chunks that this token of sample i brings."""
    writer, said = self._writers[i], self._said[i]
    if writer.finish:
      return []
    self.usage.add(token)
    pieces = writer.add(token)
    shown = []
    if self._asked.logprobs is not None and token.phase == "answer" and token.finish != "stop":
      shown = [logprobs.entry(self._tokenizer, token)]
      self._logprobs[i] += shown
    for piece in pieces:
      said[_KEYS[piece.phase]] += piece.text
    deltas = [{_KEYS[p.phase]: p.text} for p in pieces] or [{}] * bool(shown or writer.finish)
    chunks = [self._chunk(i, delta) for delta in deltas]
    if chunks:
      chunks[-1]["choices"][0].update(finish_reason=writer.finish, logprobs={"content": shown, "refusal": None} if shown else None)
    return chunks

  def end(self) -> list[dict]:
    return [{**self._head, "object": "chat.completion.chunk", "choices": [], "usage": self.usage.object()}] if self._asked.usage else []

  def whole(self) -> dict:
    asked = self._asked.logprobs is not None
    choices = [
        {"index": i, "message": {k: v for k, v in said.items() if v or k != "reasoning_content"}, "finish_reason": w.finish,
         "logprobs": {"content": found, "refusal": None} if asked else None}
        for i, (w, said, found) in enumerate(zip(self._writers, self._said, self._logprobs))]
    return {**self._head, "object": "chat.completion", "choices": choices, "usage": self.usage.object()}

  def _chunk(self, i: int, delta: dict) -> dict:
    choice = {"index": i, "delta": delta, "finish_reason": None, "logprobs": None}
    return {**self._head, "object": "chat.completion.chunk", "choices": [choice]}
