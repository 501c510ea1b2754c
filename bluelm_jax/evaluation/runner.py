"""Evaluates a finished recipe on held-out data: figures, controls, and what may be claimed."""

import dataclasses
import pathlib
import sys

import numpy as np

from bluelm_jax.data.chat import ChatFormat
from bluelm_jax.data.tasks import reasoning
from bluelm_jax.data.tokenizer import Tokenizer
from bluelm_jax.evaluation import grounding
from bluelm_jax.evaluation import statistics
from bluelm_jax.evaluation import text
from bluelm_jax.inference.generate import Generator
from bluelm_jax.interop import load

P_MAX = 0.001
MIN_ITEMS = 300


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


class _Speaker:
  """A loaded checkpoint with what evaluation needs."""

  def __init__(self, directory: pathlib.Path):
    self.model, self.params = load.load_pretrained(directory)
    self.tokenizer = Tokenizer(directory / "tokenizer.json")
    self.chat = ChatFormat(self.tokenizer, self.model.config.anyres, self.model.config.tokens_per_tile)
    self.generator = Generator(self.model, self.params, self.tokenizer.end_id)

  @property
  def parts(self):
    return self.generator, self.chat, self.tokenizer


def evaluate(config, before: pathlib.Path, after: pathlib.Path) -> Results:
  """Figures of the checkpoint `after`; `before` is the text stage, for bits per byte.

  Args:
    config: a recipe's `evaluation`: text, screens (shard paths), grounding_items, reasoning_items,
      screen_items, seed.
  """
  results = Results()
  for name, directory in (("before images", before), ("after all stages", after)):
    speaker = _Speaker(directory)
    for language, sums in text.bits_per_byte(speaker.model, speaker.params, speaker.chat, config.text).items():
      _bits(results, f"bits per byte, {language}, {name}", sums)
    _say("text", results.figures[-2:])
  _grounding(results, speaker, config)
  _reasoning(results, speaker, config)
  _screens(results, speaker, config)
  return results


def _say(what, figures):
  print(f"evaluated {what}: " + ", ".join(f"{f.name} {f.value:.3f}" for f in figures), file=sys.stderr, flush=True)


def _bits(results, name, sums):
  rng = np.random.default_rng(0)
  picks = rng.integers(len(sums), size=(2000, len(sums)))
  means = sums[picks, 0].sum(1) / sums[picks, 1].sum(1)
  value = sums[:, 0].sum() / sums[:, 1].sum()
  results.figures.append(Figure(name, float(value), *map(float, np.quantile(means, (0.025, 0.975))), len(sums)))


def _grounding(results, speaker, config):
  r = grounding.evaluate(*speaker.parts, config.screens, config.grounding_items, config.seed)
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


def _reasoning(results, speaker, config):
  asked = text.problems(config.reasoning_items, config.seed)
  right, said = {}, {}
  for style, name in (("none", "answering at once"), ("short", "thinking briefly"), ("long", "thinking step by step")):
    said[style] = text.reason(*speaker.parts, asked, style)
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
  for i in range(4):
    for style in ("none", "short", "long"):
      results.dialogues.append({"mode": style, "question": asked[i].question, "reply": said[style][i], "truth": asked[i].answer})


def _screens(results, speaker, config):
  r = grounding.compare_screens(*speaker.parts, config.screens, config.screen_items, config.seed)
  n = len(r["items"])
  names = {"none": "answering at once", "short": "thinking briefly", "long": "thinking step by step", "no image": "image blanked"}
  for key, name in names.items():
    results.figures.append(Figure(f"screen comparison, {name}", float(r[key].mean()), *statistics.wilson(r[key].sum(), n), n))
  for control, values in (("image blanked", r["no image"]), ("a coin", np.full(n, 0.5))):
    p = statistics.paired_test(r["none"], values, np.arange(n))
    results.claims.append(Claim("screen comparison", control, float(r["none"].mean()), float(values.mean()), n, p))
  _say("screens", results.figures[-4:])
  for i in range(3):
    _, _, ask, _, answer = r["items"][i]
    for style in ("none", "long"):
      results.dialogues.append({"mode": style, "question": "[screen] " + ask, "reply": r[f"{style} replies"][i], "truth": answer})
