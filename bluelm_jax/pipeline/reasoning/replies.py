"""What a generator's reply consists of: its thought, what it says, and the answer in that."""

import re
from typing import Mapping, NamedTuple

OPEN, CLOSE = "<think>", "</think>"
_SAYS = re.compile(r"(?:final answer|answer|答案)\s*(?:is|are|为|是|:|：)\s*[:：]?\s*([^\n]+)", re.IGNORECASE)


class Path(NamedTuple):
  """One way to an answer.

  Attributes:
    thought: None where the reply has none.
    text: what is said after it.
    answer: "" where none is found.
    marks: (how often a thought is opened, how often closed); a thought in a field of its own counts as one of each.
    truncated: the generator was cut off at its limit of tokens.
  """

  thought: str | None
  text: str
  answer: str
  marks: tuple[int, int]
  truncated: bool


def path(reply: Mapping[str, str]) -> Path:
  """A reply {"text", "thought", "finish"}: the thought in a field of its own, or between <think> and </think>.

  Some chat templates open the thought in the prompt: a reply that only closes one opened it at its start.
  """
  text, thought, cut = reply["text"], reply["thought"], reply["finish"] == "length"
  marks = (text.count(OPEN), text.count(CLOSE))
  if thought:
    return Path(thought.strip(), text.strip(), answer(text), (marks[0] + 1, marks[1] + 1), cut)
  if marks == (0, 1):
    marks = (1, 1)
  if marks[1]:
    thought, _, text = text.rpartition(CLOSE)
    thought = thought.partition(OPEN)[2] if OPEN in thought else thought
  elif marks[0]:
    text, _, thought = text.partition(OPEN)
  return Path(thought.strip() if marks != (0, 0) else None, text.strip(), answer(text) if marks[0] <= marks[1] else "", marks, cut)


def answer(text: str) -> str:
  r"""What stands in the last \boxed{}, else after the last "answer is", "答案是" or their like."""
  if found := _boxed(text):
    return found
  said = _SAYS.findall(text)
  return said[-1].strip().rstrip(".。") if said else ""


def _boxed(text: str) -> str:
  start = text.rfind("\\boxed{")
  if start < 0:
    return ""
  start, depth = start + len("\\boxed{"), 1
  for i in range(start, len(text)):
    depth += {"{": 1, "}": -1}.get(text[i], 0) if text[i - 1] != "\\" else 0
    if not depth:
      return text[start:i].strip()
  return ""
