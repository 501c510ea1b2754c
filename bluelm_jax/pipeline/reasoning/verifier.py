"""Verdicts that need a library: math-verify, which can hang, and reasoning-gym's scorers.

They run in a process of their own, which is killed when it takes too long. It has limits of memory and of files, and sees no variable
of ours, hence no key. Requests and verdicts are lines of JSON.
"""

import functools
import json
import os
import re
import select
import signal
import subprocess
import sys
import threading
from typing import Any, Mapping

from bluelm_jax.pipeline.reasoning import generated

_START = 120.0  # seconds to import a library on a busy machine
_MEMORY = 4 << 30
_PASSED = ("PATH", "PYTHONPATH", "VIRTUAL_ENV", "LANG", "TMPDIR")

# Scorers that hand an answer to eval(), or to sympy's parser, which does: nothing that could call a function or reach an attribute.
_EVALUATE = ("binary_matrix", "n_queens", "spiral_matrix", "string_insertion")
_PARSE = ("countdown", "intermediate_integration", "puzzle24", "simple_integration")
_NAMES = ("sin", "cos", "tan", "sec", "csc", "cot", "asin", "acos", "atan", "sinh", "cosh", "tanh", "log", "ln", "exp", "sqrt", "Abs", "pi")


class Hung(Exception):
  """No verdict in time."""


class Verifier:
  """A process that judges; it starts when first asked. Threads may share it."""

  def __init__(self, seconds: float):
    """`seconds`: how long one verdict may take."""
    self._seconds, self._process, self._lock, self._loaded = seconds, None, threading.Lock(), set()

  def math(self, reference: str, answer: str) -> bool:
    """Whether two mathematical expressions are equal, as math-verify sees it. Raises Hung."""
    return self._ask("math", [reference, answer])

  def gym(self, task: Mapping[str, Any], answer: str) -> bool:
    """Whether the scorer of a reasoning-gym task gives the answer full marks; `task` as generated.gym made it. Raises Hung."""
    return harmless(task["task"], answer) and self._ask("gym", [task, answer])

  def close(self) -> None:
    if self._process:
      self._process.kill()
      self._process.communicate()
      self._process = None
      self._loaded.clear()

  def _ask(self, kind: str, arguments: list) -> bool:
    with self._lock:
      if not self._process:
        env = {k: os.environ[k] for k in _PASSED if k in os.environ} | {"PYTHONDONTWRITEBYTECODE": "1"}
        self._process = subprocess.Popen([sys.executable, "-m", __name__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=env)
      if kind not in self._loaded:
        self._told(self._say([kind, None], _START))
        self._loaded.add(kind)
      return self._told(self._say([kind, arguments], self._seconds))

  def _told(self, verdict: bool | str) -> bool:
    """A verdict; a text is what the user has to do first."""
    if isinstance(verdict, str):
      raise ValueError(verdict)
    return verdict

  def _say(self, request: list, seconds: float) -> Any:
    try:
      self._process.stdin.write(json.dumps([*request, seconds]).encode() + b"\n")
      self._process.stdin.flush()
      ready, _, _ = select.select([self._process.stdout], [], [], seconds)
      line = self._process.stdout.readline() if ready else b""
    except BrokenPipeError:
      line = b""
    if not line:  # too slow, or over its memory
      self.close()
      raise Hung
    return json.loads(line)


@functools.cache
def shared(seconds: float) -> Verifier:
  """One a process of the pipeline."""
  return Verifier(seconds)


def harmless(task: str, answer: str) -> bool:
  """Whether an answer may be given to a task's scorer, which may evaluate it."""
  if task in _EVALUATE:
    return not re.search(r"[(){}]|\blambda\b", answer)
  if task in _PARSE:
    names = re.findall(r"[^\W\d]\w*", answer)
    return not re.search(r"""['"\[\]{};:=@\\]|__|\.\s*[^\W\d]""", answer) and all(len(name) == 1 or name in _NAMES for name in names)
  return True


def _math(reference: str, answer: str) -> bool:
  import math_verify

  # Its own time limits need signals of the main thread; ours is the process's end.
  gold, found = (math_verify.parse(f"${text}$", parsing_timeout=None) for text in (reference, answer))
  return bool(gold and found) and math_verify.verify(gold, found, timeout_seconds=None)


def _gym(task: Mapping[str, Any], answer: str) -> bool | str:
  item = generated.gym_item(task)
  if item["question"].strip() != task["question"]:
    return f"reasoning-gym made another question of {task['task']} {task['index']} than before; run it with the version of the first run"
  data = generated.gym_data(*(task[k] for k in ("task", "level", "seed", "size")))
  return data.score_answer(answer, item) >= 0.99  # partial marks are for near misses


def _serve() -> None:
  """Answers lines until stdin ends."""
  import resource

  requests, verdicts = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
  os.dup2(2, 1)  # libraries print
  resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
  resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
  for line in requests:
    kind, arguments, seconds = json.loads(line)
    signal.setitimer(signal.ITIMER_REAL, seconds + 1)  # the kernel ends us, in the midst of C code too, should nobody be left to do so
    if arguments is None:
      try:
        verdict = _math("x^2", r"\frac{x^3}{x}") if kind == "math" else bool(generated.version())  # what is slow the first time
      except ValueError as e:  # generated's, which says so itself
        verdict = str(e)
      except ImportError as e:
        verdict = f"answers need a check by a library ({e}); pip install 'bluelm_jax[reasoning]'"
    else:
      try:
        verdict = (_math if kind == "math" else _gym)(*arguments)
      except Exception:  # a library's failure on a strange answer: it is not known to be right
        verdict = False
    verdicts.write(json.dumps(verdict if isinstance(verdict, str) else bool(verdict)) + "\n")
    verdicts.flush()
    signal.setitimer(signal.ITIMER_REAL, 0)


if __name__ == "__main__":
  _serve()
