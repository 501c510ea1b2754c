"""The one thread that owns the engine."""

import asyncio
import functools
import logging
import queue
import threading
from typing import Any
from typing import AsyncIterator
from typing import Callable
from typing import Sequence

from bluelm_jax.data.batch import Example
from bluelm_jax.inference.request import Options
from bluelm_jax.inference.request import Token

_log = logging.getLogger(__name__)


_LEAVE = 10.0  # seconds that the engine gets to end its last step
_FAILED = "the engine failed; the server's log says how"


class Broken(Exception):
  """No more tokens will come."""


class Stopped(Broken):
  """Because the server stops."""


class Stream:
  """Tokens of the samples of one or several prompts. Sample j of prompt i is choice i * n + j."""

  def __init__(self, prompts: Sequence[Example], options: Options):
    self.prompts, self.options = prompts, options
    self.ids: list[int] = []  # in the engine; its thread's
    self._queue: asyncio.Queue[list[tuple[int, Token]] | Broken] = asyncio.Queue()

  async def steps(self) -> AsyncIterator[list[tuple[int, Token]]]:
    """The (choice, token)s of a step at a time, until every sample has ended by itself; whoever ends one stops asking. Raises Broken."""
    left = len(self.prompts) * self.options.n
    while left:
      found = await self._queue.get()
      if isinstance(found, Broken):
        raise found
      left -= sum(token.finish is not None for _, token in found)
      yield found

  def put(self, found) -> None:
    self._queue.put_nowait(found)


class Worker:
  """Steps the engine while it has work, and does what it is told between two steps.

  Attributes:
    failure: "" or what the engine died of.
    paused: no steps are made, and whatever is asked waits.
    stats: the engine's, as of the last step.
    version: of its weights.
  """

  def __init__(self, engine, version: int = 0):
    self._engine = engine
    self._tasks: queue.SimpleQueue[tuple[Callable, asyncio.Future | None]] = queue.SimpleQueue()
    self._streams: dict[int, tuple[Stream, int]] = {}  # by the engine's ids: who waits, and its first choice
    self._running = {}  # by the same: samples that have not ended by themselves
    self._open = True
    self.failure, self.paused, self.version, self.stats = "", False, version, engine.stats()
    self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

  async def __aenter__(self):
    self._loop = asyncio.get_running_loop()
    self._thread.start()
    return self

  async def __aexit__(self, *_):
    self._tasks.put((self._close, None))
    await asyncio.to_thread(self._thread.join, _LEAVE)  # one that hangs does not keep the process: it is a daemon

  async def do(self, function: Callable[[Any], Any]) -> Any:
    """`function(engine)`, on the engine's thread. Raises what it raises, or Broken."""
    future = self._loop.create_future()
    self._tasks.put((function, future))
    return await future

  async def submit(self, stream: Stream) -> None:
    """Asks for all of a stream's prompts, or for none. ValueError for what the engine cannot do."""
    await self.do(functools.partial(self._begin, stream))

  def cancel(self, stream: Stream) -> None:
    """Ends what of a stream still runs, at any time after `submit` was called."""
    self._tasks.put((functools.partial(self._cancel, stream), None))

  def end(self, stream: Stream, choice: int) -> None:
    """Ends one choice, of which no more is wanted; the others go on."""
    self._tasks.put((functools.partial(self._end, stream, choice), None))

  async def pause(self, yes: bool) -> None:
    def change(_):
      self.paused = yes

    await self.do(change)

  async def update_weights(self, version: int, params) -> None:
    def change(engine):
      engine.update_weights(version, params)
      self.version = version

    await self.do(change)

  async def stop(self) -> None:
    """Ends all that runs; whoever waits for it gets Stopped."""
    def end(engine):
      for stream, _ in list(self._streams.values()):
        self._tell(stream.put, Stopped("the server stops"))
        self._cancel(stream, engine)

    await self.do(end)

  def _run(self):
    try:
      while self._open:
        self._obey()
        if self._open:
          self._hand_out(self._engine.step())
        self.stats = self._engine.stats()
    except Exception as e:  # a fault of ours or of the device: nothing that the engine holds can be trusted
      _log.exception("the engine failed")
      self.failure = f"{type(e).__name__}: {' '.join(str(e).split())[:200]}"
      for stream in {id(s): s for s, _ in self._streams.values()}.values():
        self._tell(stream.put, Broken(_FAILED))
      while self._open:
        function, future = self._tasks.get()
        if function == self._close:
          self._close(None)
        elif future:
          self._tell(_settle, future, None, Broken(_FAILED))

  def _obey(self):
    """Does all that waits, and waits for more as long as there is nothing to compute."""
    while True:
      try:
        idle = self.paused or not self._engine.busy
        function, future = self._tasks.get(block=idle and self._open)
      except queue.Empty:
        return
      result = error = None
      try:
        result = function(self._engine)
      except Exception as e:  # whoever asked is told
        error = e
        if future is None:
          raise
      self.stats = self._engine.stats()
      if future:
        self._tell(_settle, future, result, error)

  def _begin(self, stream, engine):
    try:
      for prompt in stream.prompts:
        stream.ids.append(engine.submit(prompt, stream.options))
    except BaseException:
      for i in stream.ids:
        engine.cancel(i)
      stream.ids = []
      raise
    for place, i in enumerate(stream.ids):
      self._streams[i], self._running[i] = (stream, place * stream.options.n), stream.options.n

  def _cancel(self, stream, engine):
    for i in stream.ids:
      engine.cancel(i)
      self._forget(i)

  def _end(self, stream, choice, engine):
    prompt, sample = divmod(choice, stream.options.n)
    engine.cancel(stream.ids[prompt], sample)

  def _forget(self, i):
    self._streams.pop(i, None)
    self._running.pop(i, None)

  def _close(self, _):
    self._open = False

  def _hand_out(self, tokens: Sequence[Token]):
    found: dict[int, tuple[Stream, list]] = {}
    for token in tokens:
      if token.request not in self._streams:
        continue  # cancelled before this step was read
      stream, first = self._streams[token.request]
      found.setdefault(id(stream), (stream, []))[1].append((first + token.sample, token))
      self._running[token.request] -= token.finish is not None
      if not self._running[token.request]:
        self._forget(token.request)
    for stream, mine in found.values():
      self._tell(stream.put, mine)

  def _tell(self, function, *args):
    self._loop.call_soon_threadsafe(function, *args)


def _settle(future, result, error):
  if future.done():  # whoever asked has left
    return
  future.set_exception(error) if error else future.set_result(result)
