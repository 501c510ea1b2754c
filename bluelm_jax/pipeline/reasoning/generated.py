"""Questions that a program makes, as many as one wants: reasoning-gym's tasks and ours, by seed and level."""

import fnmatch
import functools
from importlib import metadata
from typing import Any, Iterator, Mapping
import zlib

import numpy as np

from bluelm_jax.data.sample import Sample
from bluelm_jax.data.tasks import reasoning
from bluelm_jax.pipeline.reasoning import questions

# composite needs arguments; the next three make another item in every process, since they iterate over sets; the scorers of the last two
# take wrong answers for right (0.1.25: 0 for a small probability; anything at all).
_LEFT_OUT = {"composite", "isomorphic_strings", "polynomial_multiplication", "ransom_note", "coin_flip", "game_of_life_halting"}
_COUNT = 1000  # questions of a task and level, unless the source says


def names(source: Mapping[str, Any]) -> list[str]:
  """"TASK@LEVEL" of a source of kind "reasoning_gym" or "tasks"; its path names tasks, e.g. "chain_sum,leg_*". Level -1 is a task's own default.

  Raises:
    ValueError: no such task, or it has no levels.
  """
  known = sorted(_gym().factory.DATASETS.keys() - _LEFT_OUT) if source["kind"] == "reasoning_gym" else sorted(reasoning.LENGTHS)
  found = []
  for pattern in source["path"].split(","):
    tasks = fnmatch.filter(known, pattern.strip())
    if not tasks:
      raise ValueError(f"{source['kind']} has no task {pattern.strip()!r}; use some of {', '.join(known)}"[:300])
    for task in tasks:
      levels = source.get("levels", ())
      if source["kind"] == "reasoning_gym" and levels and task not in _gym().factory.CURRICULA:
        raise ValueError(f"reasoning-gym's {task} has no levels; give it a source of its own, without levels")
      low, high = reasoning.LENGTHS.get(task, (0, max(levels, default=0))) if source["kind"] == "tasks" else (0, max(levels, default=0))
      if levels and not low <= min(levels) <= max(levels) <= high:
        raise ValueError(f"{task} has levels {low} to {high}; mend levels of its source")
      found += [f"{task}@{level}" for level in levels or (-1,)]
  return found


def count(source: Mapping[str, Any]) -> int:
  return source.get("count", _COUNT)


def version() -> str:
  """Of reasoning-gym, whose items change with it."""
  _gym()  # says how to install it
  return metadata.version("reasoning-gym")


def samples(source: Mapping[str, Any], page: str, start: int, stop: int, name: str) -> Iterator[Sample]:
  """Questions start to stop of "TASK@LEVEL"."""
  task, level = page.split("@")
  make = _ours if source["kind"] == "tasks" else _theirs
  for i in range(start, stop):
    found = dict(task=task, level=int(level), seed=source.get("seed", 0), size=count(source), index=i)
    yield make(found, f"{name}: {page}#{i}", source["licence"])


def _ours(task: Mapping[str, Any], where: str, licence: str) -> Sample:
  rng = np.random.default_rng([task["seed"], zlib.crc32(task["task"].encode()), task["level"] + 1, task["index"]])
  found = reasoning.make(rng, task["task"], steps=None if task["level"] < 0 else task["level"])
  return questions.make(found.question, where, licence, dict(kind=task["task"], check="number", answer=found.answer), code=found.language)


def _theirs(task: Mapping[str, Any], where: str, licence: str) -> Sample:
  item = gym_item(task)
  text = item["question"].strip()
  question = dict(kind=task["task"], check="gym", answer=str(item["answer"] or ""), task={**task, "question": text})
  return questions.make(text, where, licence, question, code="en")


def gym_item(task: Mapping[str, Any]) -> dict[str, Any]:
  """reasoning-gym's item {"question", "answer", "metadata"}: the same for the same task, level, seed, size and index."""
  return gym_data(task["task"], task["level"], task["seed"], task["size"])[task["index"]]


@functools.lru_cache(maxsize=16)
def gym_data(task: str, level: int, seed: int, size: int):
  """A data set of reasoning-gym."""
  gym = _gym()
  if level < 0:
    return gym.create_dataset(task, size=size, seed=seed)
  curriculum = gym.factory.create_curriculum(task)
  curriculum.set_global_level(level)
  return gym.create_dataset(task, **{**vars(curriculum.generate_configuration()), "size": size, "seed": seed})


def _gym():
  try:
    import reasoning_gym  # takes seconds
    import reasoning_gym.factory
  except ImportError as e:
    raise ValueError("generated questions need reasoning-gym; pip install 'bluelm_jax[reasoning]'") from e
  return reasoning_gym
