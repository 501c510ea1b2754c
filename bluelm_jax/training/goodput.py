"""Where the wall time of a stage went, over all the processes that worked on it.

`goodput.jsonl` gets a line whenever a process begins, logs or saves: the seconds it has spent on each kind since it
began. Goodput is the share of "steps" whose work was not lost.
"""

import json
import math
import pathlib
import time
from typing import Sequence

from bluelm_jax.supervise import Life
from bluelm_jax.training import jsonl

FILE_NAME = "goodput.jsonl"
KINDS = {
    "steps": "steps that count, and their logging",
    "start": "imports, first batch, initial state",
    "restore": "reading a checkpoint",
    "compile": "the first step's tracing and compiling",
    "input": "waiting for batches while the devices had nothing to do; where they were done in the midst of it, all of it",
    "checkpoint": "waiting for saves",
    "evaluation": "the loss on held-out data, its compiling too",
    "lost": "steps that were made again, by a later process or after going back from bad ones",
    "restart": "from the last line of a process that failed to the start of the next: steps since, the silence, the pause",
}


class Clock:
  """Gives every second of a process's work on a stage to one kind."""

  def __init__(self, workdir, life: Life):
    self._file, self._life, self._since = pathlib.Path(workdir) / FILE_NAME, life, life.began
    self._written = []  # (step, seconds of steps by then)
    self._seconds = dict.fromkeys(("start", "restore", "compile", "input", "checkpoint", "evaluation", "lost", "steps"), 0.0)

  def mark(self, kind: str) -> float:
    """What passed since the last mark was of this kind; returns its seconds."""
    now = time.time()
    passed, self._since = max(now - self._since, 0.0), now
    self._seconds[kind] += passed
    return passed

  def went_back(self, step: int) -> None:
    """What was done since `step` will be made again."""
    self._written = [(at, seconds) for at, seconds in self._written if at <= step]
    kept = self._written[-1][1] if self._written else 0.0
    self._seconds["lost"] += self._seconds["steps"] - kept
    self._seconds["steps"] = kept

  def write(self, step: int) -> None:
    """Appends a line: `step` is reached, or is where the work begins. The first of several processes does."""
    self._written.append((step, self._seconds["steps"]))
    line = {"began": self._life.began, "restarted": self._life.restarted, "time": time.time(), "step": step, "seconds": self._seconds}
    jsonl.append(self._file, line)


def read(workdir) -> dict[str, float]:
  """Seconds of each of KINDS; all 0 where nothing was recorded."""
  lives = {}
  file = pathlib.Path(workdir) / FILE_NAME
  for line in file.read_text().splitlines() if file.exists() else ():
    try:
      record = json.loads(line)
    except ValueError:  # cut by a full disk
      continue
    lives.setdefault(record["began"], []).append(record)
  totals, kept, lives = dict.fromkeys(KINDS, 0.0), math.inf, list(lives.values())
  for number in reversed(range(len(lives))):
    first, last = lives[number][0], lives[number][-1]
    for kind, seconds in last["seconds"].items():
      totals[kind] += seconds
    good = [0.0, *(r["seconds"]["steps"] for r in lives[number] if r["step"] <= kept)][-1]
    totals["lost"] += last["seconds"]["steps"] - good
    totals["steps"] -= last["seconds"]["steps"] - good
    kept = min(kept, first["step"])  # what lies beyond was made again from here
    if number and first["restarted"]:
      totals["restart"] += max(first["began"] - lives[number - 1][-1]["time"], 0.0)
  return totals


def line(workdirs: Sequence) -> str:
  """"goodput 91.2 % of 62 s (start 3.1 s, compile 2.2 s)" of stages together."""
  totals = {kind: sum(read(w)[kind] for w in workdirs) for kind in KINDS}
  whole = sum(totals.values())
  if not whole:
    return "no goodput recorded"
  losses = ", ".join(f"{kind} {seconds:.1f} s" for kind, seconds in totals.items() if kind != "steps" and seconds >= 0.05)
  return f"goodput {totals['steps'] / whole:.1%} of {whole:.0f} s" + (f" ({losses})" if losses else "")
