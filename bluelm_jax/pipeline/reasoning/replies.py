"""What a generator's reply consists of: its thought, what it says, and the answer in that."""

import re
import textwrap
from typing import Mapping, NamedTuple

OPEN, CLOSE = "<think>", "</think>"
_BLOCK = re.compile(r"^[ \t]*```[ \t]*([\w+#.-]*)[^\n`]*\n(.*?)^[ \t]*```[ \t\r]*$", re.MULTILINE | re.DOTALL)
_PYTHON = ("python", "python3", "py")
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


def path(reply: Mapping[str, str], check: str = "") -> Path:
  """A reply {"text", "thought", "finish"}: the thought in a field of its own, or between <think> and </think>.

  Some chat templates open the thought in the prompt: a reply that only closes one opened it at its start. With check "code" the answer is a program.
  """
  answer = code if check == "code" else said
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


def code(text: str) -> str:
  """The last fenced block that says it is Python, else the last that says nothing; "" where there is none."""
  blocks = [(language.lower(), body) for language, body in _BLOCK.findall(text)]
  found = [body for language, body in blocks if language in _PYTHON] or [body for language, body in blocks if not language]
  return textwrap.dedent(found[-1]).strip("\n") if found else ""


def prose(text: str) -> str:
  """What stands outside of fenced blocks."""
  return _BLOCK.sub("", text)


def said(text: str) -> str:
  r"""What stands in the last \boxed{}, else after the last "answer is", "答案是" or their like."""
  if found := _boxed(text):
    return found
  last = _SAYS.findall(text)
  return last[-1].strip().rstrip(".。") if last else ""


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
