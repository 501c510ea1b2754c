"""Verifiable reasoning questions with a long and a short chain of thought, in Chinese and English.

Every step of a chain restates what it reads under its label, so that each step is local. Questions are
split by a hash of their text: one in ten belongs to the held-out set and is never trained on.
"""

import dataclasses
import string
import zlib

import numpy as np

LENGTHS = {"swap": (1, 6), "parity": (2, 10), "count": (2, 10), "story": (1, 4)}
HINTS = {"long": {"en": "Think step by step.", "zh": "请逐步思考。"}, "short": {"en": "Think briefly.", "zh": "请简要思考。"}}
STYLES = ("none", *HINTS)


@dataclasses.dataclass(frozen=True)
class Problem:
  """One question; `chains` has "long" and "short"."""

  task: str
  steps: int
  language: str
  question: str
  chains: dict[str, str]
  answer: str


def _labels(rng, n):
  start = int(rng.integers(26 - n + 1))
  return string.ascii_uppercase[start : start + n]


def _swap(rng, n, language):
  state, moves, long, short = list("12345"), "", "", ""
  for label in _labels(rng, n):
    i, j = (int(k) for k in rng.choice(5, 2, replace=False))
    state[i], state[j] = state[j], state[i]
    now = "".join(state)
    moves += f"{label}{i + 1}{j + 1};"
    long += f"{label}{i + 1}{j + 1}>{now};"
    short += f"{label}{now};"
  ask = {"en": f"Swap places in 12345: {moves} Result?", "zh": f"交换12345的位置: {moves} 结果?"}[language]
  return ask, long, short, "".join(state)


def _parity(rng, n, language):
  bits, long, short, total = "", "", "", 0
  for label in _labels(rng, n):
    bit = int(rng.integers(2))
    total ^= bit
    bits += f"{label}{bit};"
    long += f"{label}{bit}>{total};"
    short += f"{label}{total};"
  ask = {"en": f"Ones odd (1) or even (0): {bits} Result?", "zh": f"一的个数奇(1)偶(0): {bits} 结果?"}[language]
  return ask, long, short, str(total)


def _count(rng, n, language):
  wanted = int(rng.integers(1, 4))
  items, long, short, total = "", "", "", 0
  for label in _labels(rng, n):
    item = int(rng.integers(1, 4))
    total += item == wanted
    items += f"{label}{item};"
    long += f"{label}{item}>{total};"
    short += f"{label}{total};"
  ask = {"en": f"How many {wanted} in: {items} Result?", "zh": f"有几个{wanted}: {items} 结果?"}[language]
  return ask, long, short, str(total)


def _story(rng, n, language):
  names, things = {"en": (("Tom", "Ann", "Li"), ("apples", "pens")), "zh": (("小明", "小红", "小李"), ("苹果", "铅笔"))}[language]
  name, thing = names[rng.integers(len(names))], things[rng.integers(len(things))]
  total = int(rng.integers(1, 10))
  text = {"en": f"{name} has {total} {thing};", "zh": f"{name}有{total}个{thing};"}[language]
  long = short = ""
  for _ in range(n):
    change = int(rng.integers(-min(total, 5), min(10 - total, 6)))
    sign, size = ("-", -change) if change < 0 else ("+", change)
    verb = {"en": {"-": "gives", "+": "gets"}, "zh": {"-": "给出", "+": "得到"}}[language][sign]
    text += {"en": f" {verb} {size};", "zh": f"{verb}{size};"}[language]
    long += f"{total}{sign}{size}={total + change};"
    total += change
    short += f"{total};"
  return text + {"en": " Result?", "zh": " 结果?"}[language], long, short, str(total)


_MAKERS = {"swap": _swap, "parity": _parity, "count": _count, "story": _story}


def make(rng: np.random.Generator, task: str | None = None, held_out: bool = False, steps: int | None = None) -> Problem:
  """Draws a problem of the training or of the held-out side; lengths are uniform over the task's range."""
  while True:
    name = task or list(_MAKERS)[rng.integers(len(_MAKERS))]
    low, high = LENGTHS[name]
    n = steps or int(rng.integers(low, high + 1))
    language = ("en", "zh")[rng.integers(2)]
    question, long, short, answer = _MAKERS[name](rng, n, language)
    if is_held_out(question) == held_out:
      return Problem(name, n, language, question, {"long": long, "short": short}, answer)


def is_held_out(question: str) -> bool:
  return zlib.crc32(question.encode()) % 10 == 0


def conversation(problem: Problem, style: str) -> list[dict]:
  """The training conversation; `style` is "long", "short" or "none" (answer at once)."""
  if style == "none":
    return [{"role": "user", "content": problem.question}, {"role": "assistant", "content": problem.answer}]
  return [
      {"role": "user", "content": f"{problem.question} {HINTS[style][problem.language]}"},
      {"role": "assistant", "content": problem.answer, "reasoning_content": problem.chains[style]},
  ]


def is_correct(problem: Problem, reply: str) -> bool:
  """Scores what follows `</think>`; a thought that never closed is wrong."""
  if "<think>" in reply and "</think>" not in reply:
    return False
  return reply.rsplit("</think>", 1)[-1].strip() == problem.answer
