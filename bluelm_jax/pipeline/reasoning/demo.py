"""A solver and rewriter without a model, for the demonstration and the tests: it knows the tasks of data/tasks/reasoning.py and errs on purpose.

Every step of a chain goes wrong with a given chance, and what follows builds on it, so long questions are wrong more often; two errors
may cancel out. A share of the replies breaks a rule of form. All is drawn from the prompt's text, so replies repeat.
"""

import functools
import re
from typing import Any, Mapping, Sequence
import zlib

import numpy as np

_STEP = re.compile("([A-Z])([1-5]{2}|[0-3])(?=;)")
_CHANGE = re.compile("(gets|gives|得到|给出) ?(\\d+)")
_WORDS = (("Swap places in", "交换"), ("Ones odd (1) or even (0):", "一的个数奇(1)偶(0):"), ("How many", "有几个"), ("Result?", "结果?"))
_LONGER = {"en": "Let me check that again from the start, step by step, before I say it. ", "zh": "说出结果之前，我再从头一步一步检查一遍。"}


def solve(prompts: Sequence[Sequence[Mapping[str, Any]]], n: int, error: float = 0.05, malformed: float = 0.1) -> list[list[str]]:
  """n replies to each prompt.

  Args:
    prompts: of one user turn, a text; as prompts.solve and prompts.rewrite make them.
    error: the chance that a step goes wrong.
    malformed: the share of replies that are cut off, do not close their thought, give no answer, or speak the other language.
  """
  return [[_reply(prompt[0]["content"], i, error, malformed) for i in range(n)] for prompt in prompts]


worse = functools.partial(solve, error=0.1)  # a third of the answers are wrong


def _reply(text: str, i: int, error: float, malformed: float) -> str:
  rng = np.random.default_rng([zlib.crc32(text.encode()), i])
  if "<question>" in text:
    return f"<question>{_rewritten(text, rng)}</question>"
  chinese = bool(re.search("结果|请", text))
  steps, answer = work(text, rng, error)
  short = rng.random() < 0.5
  thought = "".join(f"{step};" for step in steps)
  if not short:  # restates the whole, then goes through it again
    intro = "先写下题目：" if chinese else "First I write down what is asked: "
    thought = f"{intro}{text.splitlines()[0]}\n{thought}\n{_LONGER['zh' if chinese else 'en']}\n{'; '.join(reversed(steps))}"
  said = f"答案是 \\boxed{{{answer}}}。" if chinese else f"The answer is \\boxed{{{answer}}}."
  if rng.random() >= malformed:
    return f"<think>{thought}</think>{said}"
  other = _LONGER["en" if chinese else "zh"] * 2
  return str(rng.choice([f"<think>{thought}", said, f"<think>{thought}</think>", f"<think>{thought} {other}</think>{said}", f"<think>{thought}</think><think>{thought}</think>{said}"]))


def work(text: str, rng: np.random.Generator, error: float) -> tuple[list[str], str]:
  """(what each step says, the answer)."""
  question = text.splitlines()[0]
  steps = []
  if changes := _CHANGE.findall(question):
    total = int(re.search(r"\d+", question)[0])
    for verb, size in changes:
      after = total + int(size) * (1 if verb in ("gets", "得到") else -1) + _slip(rng, error)
      steps.append(f"{total}{'+' if verb in ('gets', '得到') else '-'}{size}={after}")
      total = after
    return steps, str(total)
  state, count = list("12345"), 0
  wanted = re.search(r"(?:How many|有几个) ?(\d)", question)
  for label, what in _STEP.findall(question):
    if len(what) == 2:
      i, j = (int(c) - 1 for c in what)
      j = (j + abs(_slip(rng, error))) % 5
      state[i], state[j] = state[j], state[i]
    elif wanted:
      count += (what == wanted[1]) + _slip(rng, error)
    else:
      count = (count + int(what) + _slip(rng, error)) % 2
    steps.append(f"{label}{what}>{''.join(state) if len(what) == 2 else count}")
  return steps, "".join(state) if "12345" in question else str(count)


def _slip(rng: np.random.Generator, error: float) -> int:
  return int(rng.choice([-1, 1])) if rng.random() < error else 0


def _rewritten(text: str, rng: np.random.Generator) -> str:
  """Another question: in another order of words, in the other language, or with another number; one in five has lost a number."""
  told, question = text.split("\n\n", 1)
  if "Translate" in told or "翻译" in told:
    for english, chinese in _WORDS:
      question = question.replace(english, chinese) if "Translate" in told else question.replace(chinese, english)
  elif "Change the numbers" in told or "更换" in told:
    question = re.sub(r"\d(?=;)", lambda found: str(int(found[0]) % 3 + 1), question, count=1)
  else:
    question = re.sub("Result\\?", "What comes out?", question) if "Result?" in question else question.replace("结果?", "最后是多少?")
  return re.sub(r"\d;", ";", question, count=1) if rng.random() < 0.2 else question
