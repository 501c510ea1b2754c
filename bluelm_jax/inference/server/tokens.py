"""/generate: token ids in, token ids out, with all that training wants to know of them."""

from bluelm_jax.inference import request
from bluelm_jax.inference.server import asking
from bluelm_jax.inference.server import bodies
from bluelm_jax.inference.server import frames
from bluelm_jax.inference.server.asking import Asked
from bluelm_jax.inference.server.errors import Refusal
from bluelm_jax.inference.server.logprobs import finite
from bluelm_jax.inference.server.usage import Usage

_LISTS = {
    "ids": "token", "logprobs": "logprob", "behaviour_logprobs": "behaviour_logprob",
    "phases": "phase", "forced": "forced", "versions": "version"}


def read(fields: bodies.Fields, service) -> Asked:
  """Understands a request."""
  said = asking.sampling(fields)
  stop = fields.take_any("stop_token_ids")
  said["stop_ids"] = None if stop is None else tuple(dict.fromkeys(service.check_ids(fields, "stop_token_ids", stop)))
  said["thinking"] = fields.take("thinking", bool, False)
  said["thinking_token_budget"], said["answer_tokens"] = fields.take("thinking_token_budget", int), fields.take("answer_tokens", int)
  if said["thinking"] and not service.thinks:
    raise Refusal(400, "this model does not think; leave thinking out", "thinking")
  stream, top, most = fields.take("stream", bool, False), asking.top(fields, "top_logprobs"), fields.take("max_tokens", int)
  ids = service.check_ids(fields, "prompt_token_ids", fields.needed("prompt_token_ids", list))
  fields.end()
  if not ids:
    raise fields.refusal("prompt_token_ids", "is empty; give some")
  prompt = request.plain_prompt(ids, service.tile_size)
  options = asking.options([prompt], most, service.limits, service.context, top_logprobs=top or 0, **said)
  return Asked([prompt], options, stream=stream, usage=True, logprobs=top)


class Reply:
  """Everything that the engine says of each token."""

  media_type, frame, closing = "application/x-ndjson", staticmethod(frames.line), b""

  def __init__(self, asked: Asked, service):
    self._asked, self._samples = asked, [[] for _ in range(asked.options.n)]
    self.usage = Usage(len(asked.prompts[0].tokens))

  @property
  def ended(self) -> bool:
    return all(map(self.finished, range(len(self._samples))))

  def finished(self, i: int) -> bool:
    found = self._samples[i]
    return bool(found and found[-1].finish)

  def start(self) -> list[dict]:
    return []

  def add(self, i: int, token) -> list[dict]:
    self.usage.add(token)
    self._samples[i].append(token)
    return [{
        "sample": i, "id": token.token, "logprob": finite(token.logprob), "behaviour_logprob": finite(token.behaviour_logprob),
        "phase": token.phase, "forced": token.forced, "version": token.version, "finish": token.finish, **self._top(token)}]

  def end(self) -> list[dict]:
    return [{"usage": self.usage.object()}]

  def whole(self) -> dict:
    samples = []
    for found in self._samples:
      lists = {name: [getattr(t, key) for t in found] for name, key in _LISTS.items()}
      for name in ("logprobs", "behaviour_logprobs"):
        lists[name] = list(map(finite, lists[name]))
      if self._asked.logprobs is not None:
        lists["top_logprobs"] = [self._top(t)["top"] for t in found]
      samples.append({**lists, "finish": found[-1].finish})
    return {"samples": samples, "usage": self.usage.object()}

  def _top(self, token) -> dict:
    return {} if self._asked.logprobs is None else {"top": [[i, finite(p)] for i, p in token.top]}
