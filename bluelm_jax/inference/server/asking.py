"""What the three endpoints that generate have in common: how to sample, and how much."""

import dataclasses
import secrets
from typing import Sequence

from bluelm_jax.data.batch import Example
from bluelm_jax.inference.request import MOST_TOP_LOGPROBS
from bluelm_jax.inference.request import Options
from bluelm_jax.inference.server import bodies
from bluelm_jax.inference.server.errors import Refusal
from bluelm_jax.inference.server.limits import Limits

MOST_STOPS = 4  # as OpenAI


@dataclasses.dataclass(frozen=True)
class Asked:
  """A request that was understood.

  Attributes:
    stream: whether the answer comes in pieces.
    usage: whether a last piece tells the usage.
    logprobs: likeliest tokens reported beside each token; None reports no log-probabilities at all.
  """

  prompts: Sequence[Example]
  options: Options
  stream: bool
  usage: bool
  logprobs: int | None


def sampling(fields: bodies.Fields) -> dict:
  """What Options says of sampling. As in OpenAI's API, absent means temperature 1 and another seed each time."""
  return dict(
      temperature=fields.take("temperature", float, 1.0), top_p=fields.take("top_p", float, 1.0), top_k=fields.take("top_k", int, 0),
      min_p=fields.take("min_p", float, 0.0), repetition_penalty=fields.take("repetition_penalty", float, 1.0),
      seed=fields.take("seed", int, secrets.randbits(32)), n=fields.take("n", int, 1))


def unsupported(fields: bodies.Fields) -> None:
  """Parameters of OpenAI's API that only one value can be honoured of. `user` is a name, and asks for nothing."""
  fields.take("user", str)
  fields.only(
      frequency_penalty=(0,), presence_penalty=(0,), logit_bias=({},), service_tier=("auto", "default"), store=(False,), metadata=({},))


def streaming(fields: bodies.Fields) -> dict:
  """The fields `stream` and `usage` of Asked."""
  stream, given = fields.take("stream", bool, False), fields.take("stream_options", dict)
  if given is not None and not stream:
    raise fields.refusal("stream_options", "needs stream = true; leave it out")
  options = bodies.Fields(given or {}, "stream_options.")
  usage = options.take("include_usage", bool, False)
  options.only(include_obfuscation=(False,))
  options.end()
  return dict(stream=stream, usage=usage)


def top(fields: bodies.Fields, name: str) -> int | None:
  """How many likeliest tokens are asked for."""
  count = fields.take(name, int)
  if count is not None and not 0 <= count <= MOST_TOP_LOGPROBS:
    raise fields.refusal(name, f"must be from 0 to {MOST_TOP_LOGPROBS}, not {count}")
  return count


def options(prompts: Sequence[Example], max_tokens: int | None, limits: Limits, context: int, **said) -> Options:
  """Options for these prompts, within the limits; without max_tokens an answer may be as long as these and the context allow."""
  longest = max(len(p.tokens) for p in prompts)
  if longest > limits.prompt_tokens:
    raise Refusal(400, f"the prompt has {longest} tokens, over {limits.prompt_tokens}; shorten it", code="context_length_exceeded")
  if len(prompts) * said["n"] > limits.samples:
    raise Refusal(400, f"{len(prompts)} prompts of n = {said['n']} samples are over {limits.samples}; ask for fewer", "n")
  if max_tokens is None:
    max_tokens = max(1, min(limits.new_tokens, context - longest))
  if max_tokens > limits.new_tokens:
    raise Refusal(400, f"max_tokens {max_tokens} is over {limits.new_tokens}; ask for fewer", "max_tokens")
  return Options(max_tokens=max_tokens, **said)
