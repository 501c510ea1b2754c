"""Whether the machine is about to be taken away."""

import contextlib
import itertools
import signal
import threading
from typing import Callable
from typing import Iterator

import jax
from jax.experimental import multihost_utils

_calls = itertools.count(1)  # of a process's whole life, in all of its stages: the coordination service picks a number that none has reached


@contextlib.contextmanager
def notice() -> Iterator[Callable[[], bool]]:
  """Yields asked(): whether to save and leave; call it after every step, and where else the process could leave.

  In one process SIGTERM asks, if the caller is its main thread. Over several processes SIGTERM to any of them
  does, through jax's coordination service, and all are asked at one and the same call: they must make the same calls.
  """
  if jax.distributed.is_initialized():
    yield lambda: multihost_utils.reached_preemption_sync_point(next(_calls))
    return
  if threading.current_thread() is not threading.main_thread():  # Python gives signals to no other
    yield lambda: False
    return
  told = []
  before = signal.signal(signal.SIGTERM, lambda *_: told.append(True))
  try:
    yield lambda: bool(told)
  finally:
    signal.signal(signal.SIGTERM, before)
