"""What thinking within a budget brings and costs: accuracy and tokens against the budget."""

import dataclasses

import numpy as np

from bluelm_jax.data import chat as chat_lib
from bluelm_jax.data.tasks import reasoning
from bluelm_jax.evaluation import grounding
from bluelm_jax.evaluation import statistics
from bluelm_jax.inference.request import Options

BUDGETS = (0, 4, 8, 16, 24, 32, 48, 72)
_ANSWER = 12  # tokens of an answer, and room for them


@dataclasses.dataclass
class Point:
  """One budget: a rate of right answers with its 95 % interval, mean tokens of thought, and the share of thoughts cut short."""

  budget: int
  value: float
  low: float
  high: float
  thought: float
  cut: float
  n: int


def curve(engine, chat, tokenizer, asked: list[reasoning.Problem], budgets=BUDGETS) -> list[Point]:
  """Held-out problems, thought about step by step, at each budget; all budgets in one batch."""
  prompts = [chat.prompt(reasoning.conversation(p, "long")[:1], True) for p in asked]
  requests = {}
  for budget in budgets:
    options = Options(max_tokens=2 + budget + _ANSWER, thinking=True, thinking_token_budget=budget, answer_tokens=_ANSWER)
    requests |= {engine.submit(prompt, options): (budget, i) for i, prompt in enumerate(prompts)}
  answers = {place: [] for place in requests.values()}
  while engine.busy:
    for token in engine.step():
      answers[requests[token.request]].append(token)
  return [_point(budget, [answers[budget, i] for i in range(len(asked))], tokenizer, asked) for budget in budgets]


def _point(budget, answers, tokenizer, asked) -> Point:
  right = sum(reasoning.is_correct(problem, grounding.said(tokenizer, answer)) for problem, answer in zip(asked, answers))
  marks = [tokenizer.special_id(m) for m in (chat_lib.THINK_OPEN, chat_lib.THINK_CLOSE)]
  thought = [sum(t.phase == "think" and t.token not in marks for t in answer) for answer in answers]
  assert max(thought) <= budget, "the engine keeps budgets"
  cut = np.mean([any(t.forced for t in answer) for answer in answers])
  return Point(budget, right / len(asked), *statistics.wilson(right, len(asked)), float(np.mean(thought)), float(cut), len(asked))
