"""Evaluates a finished recipe on held-out data: figures, controls, and what may be claimed."""

import dataclasses
import pathlib
import sys

import numpy as np

from bluelm_jax.data import sources
from bluelm_jax.data.tasks import reasoning
from bluelm_jax.evaluation import budgets
from bluelm_jax.evaluation import grounding
from bluelm_jax.evaluation import stages
from bluelm_jax.evaluation import statistics
from bluelm_jax.evaluation import text
from bluelm_jax.inference.conversation import Speaker

P_MAX = 0.001
MIN_ITEMS = 300
_BUDGET_ITEMS = 200  # at each budget, of the reasoning items
_FEWEST = {"grounding_items": 1, "reasoning_items": len(reasoning.LENGTHS), "screen_items": 1}  # one of each task
_MOST = 10_000
_KEYS = ("before", "after", "text", "screens", *_FEWEST, "seed", "comparisons")


@dataclasses.dataclass
class Figure:
  """One line of the table: a rate (0..1) or bits per byte, with its 95 % interval."""

  name: str
  value: float
  low: float
  high: float
  n: int


@dataclasses.dataclass
class Claim:
  """An ability against its control, decided here and printed as it is."""

  ability: str
  control: str
  value: float
  control_value: float
  n: int
  p: float

  @property
  def holds(self) -> bool:
    return self.n >= MIN_ITEMS and self.p < P_MAX and self.value > self.control_value


@dataclasses.dataclass
class Results:
  figures: list[Figure] = dataclasses.field(default_factory=list)
  claims: list[Claim] = dataclasses.field(default_factory=list)
  points: list[dict] = dataclasses.field(default_factory=list)  # for the gallery
  dialogues: list[dict] = dataclasses.field(default_factory=list)
  comparisons: list[stages.Comparison] = dataclasses.field(default_factory=list)
  budget_points: list[budgets.Point] = dataclasses.field(default_factory=list)


def check(config, order) -> None:
  """Raises ValueError on a recipe's `evaluation` that cannot be run; `order` names its stages."""
  for key in (*sorted(set(config) - set(_KEYS)), *_KEYS):
    if key not in _KEYS or key not in config:
      raise ValueError(f"evaluation has {'no' if key in _KEYS else 'an unknown'} key {key!r}; its keys are {', '.join(_KEYS)}")
  for key, fewest in _FEWEST.items():
    if not isinstance(config[key], int) or not fewest <= config[key] <= _MOST:
      raise ValueError(f"evaluation.{key} = {config[key]!r}; use a whole number from {fewest} to {_MOST}")
  if not isinstance(config.seed, int) or config.seed < 0:
    raise ValueError(f"evaluation.seed = {config.seed!r}; use a whole number of at least 0")
  if config.after not in order:
    raise ValueError(f"evaluation.after = {config.after!r} is no stage of the order; use {', '.join(order)}")
  stages.check(config.comparisons, order)
  for key in ("text", "screens"):
    sources.read_shard(config[key])


def evaluate(config, directories: dict[str, pathlib.Path]) -> Results:
  """Figures of the stage `config.after`, bits per byte also of `config.before`, and stages against each other.

  Args:
    config: a recipe's `evaluation`: before, after (stages), text, screens (shard paths), grounding_items, reasoning_items,
      screen_items, seed, comparisons (see `stages`).
    directories: of the recipe's stages, by name.
  """
  results = Results()
  for name, stage in (("before images", config.before), ("after all stages", config.after)):
    speaker = Speaker(directories[stage], slots=64)
    for language, sums in text.bits_per_byte(speaker.model, speaker.params, speaker.chat, config.text).items():
      _bits(results, f"bits per byte, {language}, {name}", sums)
    _say("text", results.figures[-2:])
  parts = speaker.engine, speaker.chat, speaker.tokenizer
  _grounding(results, parts, config)
  _reasoning(results, parts, config)
  _screens(results, parts, config)
  results.budget_points = budgets.curve(*parts, text.problems(config.reasoning_items, config.seed)[:_BUDGET_ITEMS])
  results.comparisons += stages.compare(config, directories)
  return results


def _say(what, figures):
  print(f"evaluated {what}: " + ", ".join(f"{f.name} {f.value:.3f}" for f in figures), file=sys.stderr, flush=True)


def _bits(results, name, sums):
  results.figures.append(Figure(name, float(statistics.rate(sums)), *statistics.rate_interval(sums), len(sums)))


def _grounding(results, parts, config):
  r = grounding.evaluate(*parts, config.screens, config.grounding_items, config.seed)
  clusters = np.array([i.screen for i in r["items"]])
  names = {"model": "grounding accuracy", "no image": "grounding, image blanked", "other image": "grounding, another screen shown", "chance": "grounding, random point"}
  for key, name in names.items():
    results.figures.append(Figure(name, float(r[key].mean()), *statistics.bootstrap(r[key].astype(float), clusters), len(clusters)))
  for key in ("chance", "no image", "other image"):
    p = statistics.paired_test(r["model"], r[key], clusters)
    results.claims.append(Claim("GUI grounding", names[key], float(r["model"].mean()), float(r[key].mean()), len(clusters), p))
  _say("grounding", results.figures[-4:])
  for item, reply, hit in zip(r["items"], r["replies"], r["model"]):
    results.points.append({"screen": item.screen, "image": item.image, "label": item.label, "box": item.box, "reply": reply, "hit": bool(hit)})


def _reasoning(results, parts, config):
  asked = text.problems(config.reasoning_items, config.seed)
  right, said = {}, {}
  for style, name in (("none", "answering at once"), ("short", "thinking briefly"), ("long", "thinking step by step")):
    said[style] = text.reason(*parts, asked, style)
    right[style] = np.array([reasoning.is_correct(q, a) for q, a in zip(asked, said[style])])
    results.figures.append(Figure(f"reasoning, {name}", float(right[style].mean()), *statistics.wilson(right[style].sum(), len(asked)), len(asked)))
  for task in reasoning.LENGTHS:
    chosen = np.array([q.task == task for q in asked])
    for style in ("none", "long"):
      k, n = right[style][chosen].sum(), chosen.sum()
      results.figures.append(Figure(f"  {task}, {'at once' if style == 'none' else 'step by step'}", float(k / n), *statistics.wilson(k, n), int(n)))
  p = statistics.paired_test(right["long"], right["none"], np.arange(len(asked)))
  results.claims.append(Claim("reasoning by thinking step by step", "answering at once", float(right["long"].mean()), float(right["none"].mean()), len(asked), p))
  _say("reasoning", results.figures[-11:-8])
  for i in range(min(4, len(asked))):
    for style in ("none", "short", "long"):
      results.dialogues.append({"mode": style, "question": asked[i].question, "reply": said[style][i], "truth": asked[i].answer})


def _screens(results, parts, config):
  r = grounding.ask_colors(*parts, config.screens, config.screen_items, config.seed)
  n = len(r["items"])
  names = {"none": "answering at once", "none blank": "at once, screen blanked", "short": "thinking briefly", "long": "thinking step by step"}
  for key, name in names.items():
    low, high = statistics.bootstrap(r[key].astype(float), r["screens"])
    results.figures.append(Figure(f"reasoning on screens, {name}", float(r[key].mean()), low, high, n))
  # A coin decides between the two colours of a question; without a screen the model may name a third. That thinking
  # beats answering at once is not claimed of screens: the figures of both stand side by side.
  coin = ("a coin", np.full(n, 0.5))
  for how, ours, (control, values) in (("at once", "none", (names["none blank"], r["none blank"])), ("at once", "none", coin), ("step by step", "long", coin)):
    p = statistics.paired_test(r[ours], values, r["screens"])
    results.claims.append(Claim(f"reasoning on screens {how}", control, float(r[ours].mean()), float(values.mean()), n, p))
  _say("screens", results.figures[-len(names):])
  for i in range(min(3, n)):
    _, _, ask, _, answer = r["items"][i]
    for style in ("none", "long"):
      results.dialogues.append({"mode": style, "question": "[screen] " + ask, "reply": r[f"{style} replies"][i], "truth": answer})
