"""Whether the machine is about to be taken away."""

import contextlib
import signal
import threading
from typing import Callable
from typing import Iterator

import jax
from jax.experimental import multihost_utils


@contextlib.contextmanager
def notice() -> Iterator[Callable[[int], bool]]:
  """Yields asked(step): whether to save after this step and leave; call it after every step.

  In one process SIGTERM asks, if the caller is its main thread. Over several processes SIGTERM to any of them
  does, through jax's coordination service, and all are asked at one and the same step.
  """
  if jax.distributed.is_initialized():
    yield multihost_utils.reached_preemption_sync_point
    return
  if threading.current_thread() is not threading.main_thread():  # Python gives signals to no other
    yield lambda step: False
    return
  told = []
  before = signal.signal(signal.SIGTERM, lambda *_: told.append(True))
  try:
    yield lambda step: bool(told)
  finally:
    signal.signal(signal.SIGTERM, before)
