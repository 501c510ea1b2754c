"""Stages of a recipe against each other, on the same held-out items."""

import dataclasses
import pathlib
import sys
from typing import Sequence

import numpy as np

from bluelm_jax.data.tasks import reasoning
from bluelm_jax.evaluation import statistics
from bluelm_jax.evaluation import text
from bluelm_jax.inference.conversation import Speaker

KINDS = ("text", "reasoning", "lookup")
LENGTHS = (400, 900, 1400, 1900)  # tokens of text above a question
_DOCUMENTS, _NOTES = 25, 6  # texts of each length, notes in each


@dataclasses.dataclass
class Comparison:
  """A figure of a stage and of its control, and the 95 % interval of their difference; `better` says which sign is good."""

  figure: str
  stage: str
  control: str
  value: float
  control_value: float
  low: float
  high: float
  n: int
  better: str  # "higher" or "lower"


def check(comparisons, stages: Sequence[str]) -> None:
  """Raises ValueError on a list that is not of (kind, stage, control)."""
  for entry in comparisons:
    if not isinstance(entry, (list, tuple)) or len(entry) != 3 or entry[0] not in KINDS:
      raise ValueError(f"evaluation.comparisons has {entry!r}; use (kind, stage, control) with a kind of {', '.join(KINDS)}")
    for name in entry[1:]:
      if name not in stages:
        raise ValueError(f"evaluation.comparisons names {name!r}, which is no stage of the order; use {', '.join(stages)}")


def compare(config, directories: dict[str, pathlib.Path]) -> list[Comparison]:
  """All that `config.comparisons` ask for; every stage is measured once a kind.

  Args:
    config: a recipe's `evaluation`.
    directories: of the recipe's stages, by name.
  """
  found, wanted = [], {}
  for kind, *pair in config.comparisons:
    wanted.setdefault(kind, dict.fromkeys(pair)).update(dict.fromkeys(pair))
  for kind, names in wanted.items():
    measured = {}
    for name in names:
      measured[name] = _MEASURES[kind](Speaker(directories[name], slots=64), config)
      print(f"measured {kind} of {name}", file=sys.stderr, flush=True)
    for _, stage, control in (c for c in config.comparisons if c[0] == kind):
      found += _DIFFERENCES[kind](stage, control, measured[stage], measured[control])
  return found


def _bits(speaker, config):
  return text.bits_per_byte(speaker.model, speaker.params, speaker.chat, config.text)


def _bits_compared(stage, control, own, other):
  for language, ours in own.items():
    theirs = other[language]
    values = map(float, (statistics.rate(ours), statistics.rate(theirs)))
    yield Comparison(f"bits per byte, {language}", stage, control, *values, *statistics.rate_interval(ours, theirs), len(ours), "lower")


def _answers(speaker, config):
  asked = text.problems(config.reasoning_items, config.seed)
  said = text.reason(speaker.engine, speaker.chat, speaker.tokenizer, asked, "long")
  return np.array([reasoning.is_correct(q, a) for q, a in zip(asked, said)], float)


def _answers_compared(stage, control, own, other):
  yield _rates("reasoning step by step", stage, control, own, other, np.arange(len(own)))


def _lookups(speaker, config):
  return {n: text.look_up(speaker.model, speaker.params, speaker.chat, config.text, n, _DOCUMENTS, _NOTES, config.seed) for n in LENGTHS}


def _lookups_compared(stage, control, own, other):
  for length in LENGTHS:
    yield _rates(f"notes found after {length:,} tokens", stage, control, own[length].ravel(), other[length].ravel(), np.repeat(np.arange(_DOCUMENTS), _NOTES))


def _rates(figure, stage, control, own, other, clusters):
  low, high = statistics.bootstrap(own - other, clusters)
  return Comparison(figure, stage, control, float(own.mean()), float(other.mean()), low, high, len(own), "higher")


_MEASURES = {"text": _bits, "reasoning": _answers, "lookup": _lookups}
_DIFFERENCES = {"text": _bits_compared, "reasoning": _answers_compared, "lookup": _lookups_compared}
