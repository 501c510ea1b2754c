"""/v1/completions: texts continued."""

import time
import uuid

from bluelm_jax.inference import request
from bluelm_jax.inference import text
from bluelm_jax.inference.server import asking
from bluelm_jax.inference.server import bodies
from bluelm_jax.inference.server import frames
from bluelm_jax.inference.server import logprobs
from bluelm_jax.inference.server.asking import Asked
from bluelm_jax.inference.server.usage import Usage


def read(fields: bodies.Fields, service) -> Asked:
  """Understands a request and makes its prompts."""
  asking.unsupported(fields)
  fields.only(echo=(False,), suffix=("",), best_of=(1,))
  said = asking.sampling(fields)
  said["stop"] = bodies.strings(fields, "stop", asking.MOST_STOPS)
  stream, top = asking.streaming(fields), asking.top(fields, "logprobs")
  most = fields.take("max_tokens", int)
  prompts = [request.plain_prompt(ids, service.tile_size) for ids in _prompts(fields, service)]
  fields.end()
  options = asking.options(prompts, most, service.limits, service.context, top_logprobs=top or 0, **said)
  return Asked(prompts, options, logprobs=top, **stream)


def _prompts(fields, service) -> list[list[int]]:
  """One or many, as text or as ids."""
  found = fields.take_any("prompt")
  many = found if isinstance(found, list) and found and not isinstance(found[0], int) else [found]
  if len(many) > service.limits.samples:  # before any is read
    raise fields.refusal("prompt", f"holds {len(many)} prompts, over {service.limits.samples}; send fewer")
  if sum(len(p) for p in many if isinstance(p, str)) > service.limits.text_characters:
    raise fields.refusal("prompt", f"has over {service.limits.text_characters} characters; shorten it")
  out = []
  for prompt in many:
    if isinstance(prompt, str):
      ids = service.encode(prompt)
    else:
      ids = service.check_ids(fields, "prompt", prompt)
    if not ids:
      raise fields.refusal("prompt", "is empty; give some text")
    out.append(ids)
  return out


class Reply:
  """The answer to one request as OpenAI's API gives it."""

  media_type, frame, closing = "text/event-stream", staticmethod(frames.event), frames.event("[DONE]")

  def __init__(self, asked: Asked, service):
    self._asked, self._tokenizer = asked, service.speaker.tokenizer
    self._head = {"id": f"cmpl-{uuid.uuid4().hex}", "object": "text_completion", "created": int(time.time()), "model": service.name}
    self._writers = [text.Writer(self._tokenizer, asked.options.stop) for _ in range(len(asked.prompts) * asked.options.n)]
    self._texts = [""] * len(self._writers)
    self._logprobs = [_Logprobs(self._tokenizer) for _ in self._writers]
    self.usage = Usage(sum(len(p.tokens) for p in asked.prompts))

  @property
  def ended(self) -> bool:
    return all(w.finish for w in self._writers)

  def finished(self, i: int) -> bool:
    return bool(self._writers[i].finish)

  def start(self) -> list[dict]:
    return []

  def add(self, i: int, token) -> list[dict]:
    """The chunk that this token of choice i brings, if any."""
    writer = self._writers[i]
    if writer.finish:
      return []
    self.usage.add(token)
    new = "".join(p.text for p in writer.add(token))
    self._texts[i] += new
    shown = None
    if self._asked.logprobs is not None and token.finish != "stop":
      shown = self._logprobs[i].add(token)
    return [{**self._head, "choices": [_choice(i, new, writer.finish, shown)]}] if new or shown or writer.finish else []

  def end(self) -> list[dict]:
    return [{**self._head, "choices": [], "usage": self.usage.object()}] if self._asked.usage else []

  def whole(self) -> dict:
    asked, rows = self._asked.logprobs is not None, zip(self._texts, self._writers, self._logprobs)
    choices = [_choice(i, new, writer.finish, lp.whole if asked else None) for i, (new, writer, lp) in enumerate(rows)]
    return {**self._head, "choices": choices, "usage": self.usage.object()}


def _choice(i: int, new: str, finish: str | None, shown: dict | None) -> dict:
  return {"index": i, "text": new, "finish_reason": finish, "logprobs": shown}


class _Logprobs:
  """The older form: lists side by side."""

  def __init__(self, tokenizer):
    self._tokenizer, self._offset = tokenizer, 0
    self.whole = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}

  def add(self, token) -> dict:
    """This token's part alone."""
    found = logprobs.entry(self._tokenizer, token)
    top = {t["token"]: t["logprob"] for t in reversed(found["top_logprobs"])}  # of tokens that look alike the likeliest
    new = {"tokens": [found["token"]], "token_logprobs": [found["logprob"]], "top_logprobs": [top], "text_offset": [self._offset]}
    self._offset += len(found["token"])
    for key, value in new.items():
      self.whole[key] += value
    return new
