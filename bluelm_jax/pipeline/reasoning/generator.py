"""Replies to prompts, each asked for once: what an endpoint or a function answered is kept in a folder, a file a prompt.

A file's name tells the generator, its settings and the prompt, so no change of the config or of the code loses an answer, and asking
for more replies asks for the missing ones alone.
"""

from concurrent import futures
import hashlib
import itertools
import json
from typing import Any, Callable, Mapping, NamedTuple, Sequence

from etils import epath

from bluelm_jax.pipeline import clean
from bluelm_jax.pipeline import files
from bluelm_jax.pipeline.reasoning import endpoint

Messages = Sequence[Mapping[str, Any]]


class Answers(NamedTuple):
  """`replies`: of each prompt, up to n {"text", "thought", "finish"}; `refused`: index of a prompt that has none -> why."""

  replies: list[list[dict[str, str]]]
  refused: dict[int, str]


def identity(generator: Mapping[str, Any]) -> list:
  """What a reply depends on; where an endpoint is, and how patient we are, is not part of it."""
  return [generator[k] for k in ("function", "model", "temperature", "max_tokens", "extra")]


def name(generator: Mapping[str, Any]) -> str:
  """What samples say of who wrote them."""
  return generator["function"] or generator["model"]


def kept(generator: Mapping[str, Any], prompts: Sequence[Messages], n: int, folder: str) -> list[list[dict[str, str]]]:
  """Up to n replies to each prompt that `folder` holds."""
  paths = [_path(generator, prompt, folder) for prompt in prompts]
  return [files.read_json(path)[:n] if files.exists(path) else [] for path in paths]


def ask(generator: Mapping[str, Any], prompts: Sequence[Messages], n: int, folder: str) -> Answers:
  """n replies to each prompt, from `folder` where they are there.

  Raises:
    ValueError: the generator cannot be used, or refuses all prompts.
  """
  replies = kept(generator, prompts, n, folder)
  lacking = [i for i, found in enumerate(replies) if len(found) < n]
  refused: dict[int, str] = {}

  def keep(i: int, more: list[dict[str, str]]) -> None:
    replies[i] += more
    path = _path(generator, prompts[i], folder)
    epath.Path(path).parent.mkdir(parents=True, exist_ok=True)
    files.write_json(path, replies[i])

  if generator["function"]:
    _call(generator, prompts, n, replies, lacking, keep)
  else:
    refused = _request(generator, prompts, n, replies, lacking, keep)
  if refused and len(refused) == len(prompts):
    raise ValueError(f"{generator['base_url']} refuses every prompt ({refused[min(refused)]}); mend config.reasoning.generator")
  return Answers(replies, refused)


def _path(generator, prompt: Messages, folder: str) -> str:
  said = json.dumps([identity(generator), prompt], sort_keys=True)
  digest = hashlib.sha256(said.encode()).hexdigest()
  return f"{folder}/{digest[:2]}/{digest}.json"


def _call(generator, prompts, n: int, replies, lacking: Sequence[int], keep: Callable) -> None:
  function = clean.function(generator["function"])
  for have, same in itertools.groupby(sorted(lacking, key=lambda i: len(replies[i])), key=lambda i: len(replies[i])):
    same = list(same)
    for start in range(0, len(same), generator["concurrency"]):
      some = same[start : start + generator["concurrency"]]
      found = function([prompts[i] for i in some], n - have)
      if len(found) != len(some) or not all(len(texts) == n - have and all(isinstance(t, str) for t in texts) for texts in found):
        raise ValueError(f"{generator['function']} must give {n - have} texts for each of its {len(some)} prompts; mend it")
      for i, texts in zip(some, found):
        keep(i, [{"text": text, "thought": "", "finish": "stop"} for text in texts])


def _request(generator, prompts, n: int, replies, lacking: Sequence[int], keep: Callable) -> dict[int, str]:
  refused = {}

  def complete(i: int) -> None:
    try:
      while len(replies[i]) < n:
        keep(i, endpoint.ask(generator, prompts[i], n - len(replies[i])))
    except endpoint.Refused as e:
      refused[i] = str(e)

  pool = futures.ThreadPoolExecutor(generator["concurrency"])
  try:
    for done in futures.as_completed([pool.submit(complete, i) for i in lacking]):
      done.result()
  finally:
    pool.shutdown(cancel_futures=True)  # after an error those under way may finish: their answers cost money
  return refused
