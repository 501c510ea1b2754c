"""A recipe's process watched from outside: one that crashes or hangs starts again from its last checkpoint.

The watcher forks before jax is imported, so that it stays small, takes no device and costs a start nothing.
"""

import ctypes
import dataclasses
import mmap
import os
import pathlib
import platform
import signal
import struct
import sys
import time

GO_ON_LATER = 75  # EX_TEMPFAIL of sysexits.h: saved on request; the same command goes on
TRIES = 3  # lives in a row that end without a new checkpoint
_FINAL = (0, 2, GO_ON_LATER, 130)  # done, a user's mistake, SIGTERM, Ctrl-C
_POLL = 0.1  # seconds
_BACKOFF = 60.0  # seconds at most
_UNTIL_FIRST = 6  # deadlines that a stage has until its first step: imports, restoring, compiling
_BEAT = struct.Struct("dq")  # time of the last sign of life, the step then
_PR_SET_PDEATHSIG = 1


class Preempted(Exception):
  """The process was told to end, and saved what it had; doors leave with GO_ON_LATER."""


@dataclasses.dataclass
class Life:
  """What a process knows of itself.

  Attributes:
    began: time.time() from which its start counts.
    restarted: whether a watcher began it because the process before it failed.
  """

  began: float = dataclasses.field(default_factory=time.time)
  restarted: bool = False
  _shared: mmap.mmap | None = None

  def beat(self, step: int) -> None:
    """Tells the watcher that `step` is done; 0 where none can be expected soon."""
    if self._shared is not None:
      _BEAT.pack_into(self._shared, 0, time.time(), step)

  def next(self) -> "Life":
    """For what this process does next: its time counts from now."""
    return Life(_shared=self._shared)


def lives(workdir, deadline: float) -> Life:
  """Forks, and returns in the child; the watcher never returns but exits with the last child's code.

  Args:
    workdir: of a recipe; new checkpoints in its stages' folders count as progress.
    deadline: seconds without a step after which a child is killed; six times as many before a stage's first.
  """
  asked = []  # signals to pass on
  for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, lambda number, _: asked.append(number))
  shared, restarted, vain = mmap.mmap(-1, _BEAT.size), False, 0
  while True:
    before, life = _checkpoints(workdir), Life(restarted=restarted, _shared=shared)
    life.beat(0)
    sys.stderr.flush()
    if not (child := os.fork()):
      _settle()
      return life
    code, why = _watch(child, shared, deadline, asked)
    if asked and code < 0:  # before it could save, or in spite of it
      print(f"stopped: the recipe's process {why}; run the same command again to go on", file=sys.stderr)
      sys.exit(GO_ON_LATER if signal.SIGTERM in asked else 130)
    if asked or code in _FINAL:
      sys.exit(code)
    vain = 1 if _checkpoints(workdir) - before else vain + 1
    if vain == TRIES:
      print(f"error: {TRIES} times in a row the recipe's process ended without a new checkpoint, now because it {why}; see its messages above", file=sys.stderr)
      sys.exit(1)
    wait = min(2.0 ** (vain - 1), _BACKOFF)
    print(f"recipe: its process {why}; in {wait:.0f} s it starts again from the last checkpoint", file=sys.stderr, flush=True)
    until = time.monotonic() + wait
    while time.monotonic() < until and not asked:
      time.sleep(_POLL)
    if asked:
      sys.exit(GO_ON_LATER if signal.SIGTERM in asked else 130)
    restarted = True


def _settle() -> None:
  """A child gets signals from its watcher alone, and SIGTERM when that is killed (Linux)."""
  os.setpgid(0, 0)
  signal.signal(signal.SIGTERM, signal.SIG_DFL)
  signal.signal(signal.SIGINT, signal.default_int_handler)
  if platform.system() == "Linux":
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _watch(child: int, shared: mmap.mmap, deadline: float, asked: list[int]) -> tuple[int, str]:
  """Waits for a child's end; its exit code, negative for a signal, and the reason in words."""
  sent, hung = 0, ""
  while True:
    time.sleep(_POLL)
    ended, status = os.waitpid(child, os.WNOHANG)
    at, step = _BEAT.unpack_from(shared)
    when = f"after step {step}" if step else "before a step"
    if ended:
      code = os.waitstatus_to_exitcode(status)
      return code, hung or (f"left with code {code} {when}" if code >= 0 else f"was ended by {signal.Signals(-code).name} {when}")
    for number in asked[sent:]:
      os.kill(child, number)
    sent = len(asked)
    silence = time.time() - at
    if silence > deadline * (1 if step else _UNTIL_FIRST) and not hung:
      hung = f"showed no life for {silence:.0f} s {when} and was killed"
      os.kill(child, signal.SIGKILL)


def _checkpoints(workdir) -> set[pathlib.Path]:
  """What a child leaves that the next goes on from: of a stage that teaches, pieces of its store."""
  return {p for p in pathlib.Path(workdir).glob("*/checkpoints/*") if p.name.isdigit()} | set(pathlib.Path(workdir).glob("*/top_k/*.npz"))
