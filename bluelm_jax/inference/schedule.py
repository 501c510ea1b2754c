"""What the next step does: who reads a prompt, who draws a token, and whose pages are taken back.

Host side. A prompt is read but for its last token, which is each sample's first one to be read while drawing: so n samples
share the pages of their prompt.
"""

import collections
import dataclasses
from typing import Callable

import numpy as np

from bluelm_jax.inference import programs
from bluelm_jax.inference import sampling
from bluelm_jax.inference.pages import PagePool
from bluelm_jax.inference.pages import page_keys
from bluelm_jax.inference.programs import ROW
from bluelm_jax.inference.request import Request
from bluelm_jax.kernels.attention.api import target_platform

# Few sizes, so that few programs are compiled; a table's empty places cost nothing but their transfer.
_FEW_ROWS, _DECODES, _PAGES = 2, (1, 8, 64, 256, 1024), (32, 512, 8192)
# One row's products XLA makes from multiplications and sums on a GPU, whose products go to memory in between; eight rows read no more.
_FEWEST_DECODES = {"gpu": 8}


@dataclasses.dataclass(eq=False)
class Sample:
  """One answer in the making.

  Attributes:
    tokens: the prompt and what is known of the answer.
    state: one row of `sampling.State`, as it enters its slot.
    pages: of what is read, in order.
    read: how many tokens are read, the step in flight included.
    followed, looked_through: for guesses: where in the text what stood behind two or three tokens, and how far it is known.
  """

  request: Request
  index: int
  tokens: list[int]
  state: sampling.State
  pages: list[int]
  read: int
  slot: int | None = None
  ended: bool = False
  followed: dict[tuple[int, ...], int] = dataclasses.field(default_factory=dict)
  looked_through: int = 0

  @property
  def drawn(self) -> int:
    """Tokens asked for so far."""
    return self.read - (len(self.request.prompt.tokens) - 1)

  @property
  def known(self) -> int:
    """Tokens of the answer that the host has seen."""
    return len(self.tokens) - len(self.request.prompt.tokens)


@dataclasses.dataclass(eq=False)
class Prefill:
  """A text to read but for its last token, and the samples that go on from it: (index, state)."""

  request: Request
  tokens: np.ndarray
  samples: list[tuple[int, sampling.State]]
  vision_index: np.ndarray
  keys: list[bytes]
  pages: list[int] = dataclasses.field(default_factory=list)
  read: int = 0
  places: dict[bytes, int] = dataclasses.field(default_factory=dict)  # of the tiles it holds

  @property
  def end(self) -> int:
    return len(self.tokens) - 1


@dataclasses.dataclass
class Plan:
  """One step: its batch and shape, whose rows are whose, and what goes before it."""

  shape: programs.Shape
  batch: programs.Batch
  rows: list[Sample]
  copies: list[tuple[int, int]]
  entering: list[Sample]

  @property
  def asks(self) -> int:
    return max((sample.request.asks for sample in self.rows), default=sampling.LIKELIEST)


class Scheduler:
  """Queues and pages of one engine.

  Attributes:
    waiting, reading, ready, running: where a request passes, in this order.
  """

  def __init__(self, pool: PagePool, slots: int, prefill_rows: int, drafts: int, steps: int, most_pages: int, tokens_per_tile: int, images=None):
    self.pool, self.slots, self.prefill_rows, self.drafts, self.steps = pool, slots, prefill_rows, drafts, steps
    self.tokens_per_tile, self.images = tokens_per_tile, images
    self.waiting: collections.deque[Prefill] = collections.deque()
    self.reading: list[Prefill] = []
    self.ready: collections.deque[Sample] = collections.deque()
    self.running: list[Sample] = []
    self._free_slots = list(range(slots - 1, -1, -1))
    fewest = _FEWEST_DECODES.get(target_platform(), 1)
    self._page_counts = [n for n in _PAGES if n < most_pages] + [most_pages]
    self._decodes = [n for n in _DECODES if fewest <= n < slots] + [max(fewest, slots)]
    self.preemptions = 0
    self.prefix_tokens = 0

  @property
  def busy(self) -> bool:
    return bool(self.waiting or self.reading or self.ready or self.running)

  def add(self, request: Request, state: sampling.State) -> None:
    """`state` is that of every sample before its first token."""
    tokens = np.asarray(request.prompt.tokens, np.int32)
    self.waiting.append(self._prefill(request, tokens, [(i, state) for i in range(request.options.n)]))

  def _prefill(self, request, tokens, samples) -> Prefill:
    prompt = request.prompt
    vision_index = np.full(len(tokens), -1, np.int32)
    vision_index[: len(prompt.tokens)] = prompt.vision_index
    keys = page_keys(tokens[:-1], vision_index[:-1], request.digests, self.tokens_per_tile, self.pool.size)
    return Prefill(request, tokens, samples, vision_index, keys)

  def short(self) -> bool:
    """Whether those that draw, or the first that could, need more pages than there are."""
    return sum(map(self._pages_wanted, self._drawing() or [*self.ready][:1])) > self.pool.free

  def preempt(self, states: Callable[[int], sampling.State]) -> None:
    """Takes pages back until there are enough, of half-read prompts first, then of the last to draw; what loses them is read again.

    Args:
      states: the state of a slot, no step being in flight.
    """
    while self.short():
      self.preemptions += 1
      drawing = self._drawing()
      if self.reading:
        self._restart(self.reading.pop())
      elif self.ready and (len(drawing) == 1 or (not drawing and len(self.ready) > 1)):
        self._send_back(self.ready.pop())  # the last to be had: most pages of theirs are shared
      else:
        sample = self.running.pop()
        sample.state = states(sample.slot)
        self._free_slots.append(sample.slot)
        self._send_back(sample)

  def plan(self, params) -> Plan | None:
    """The next step, or None where nothing can be done; the pages it writes are taken."""
    drawing, copies, entering = self._drawing(), [], []
    for sample in drawing:
      self._make_room(sample, copies)
    self._begin_reading()
    if self.images:
      self.images.encode(params)
    while self.ready and self._free_slots and self._pages_wanted(self.ready[0]) <= self.pool.free:
      sample = self.ready.popleft()
      self._make_room(sample, copies)
      sample.slot = self._free_slots.pop()
      self.running.append(sample)
      entering.append(sample)
      drawing.append(sample)
    rows = self._prefill_rows()
    if not drawing and not rows:
      return None
    plan = self._laid_out(drawing, rows, copies, entering)
    for sample in drawing:
      sample.read += min(plan.shape.steps, sample.request.options.max_tokens - sample.drawn)
    for prefill in [p for p in self.reading if p.read == p.end]:
      self.reading.remove(prefill)
      self._fork(prefill)
    return plan

  def end(self, sample: Sample) -> None:
    """Frees what a running sample holds; its full pages stay known."""
    sample.ended = True
    self.running.remove(sample)
    self._free_slots.append(sample.slot)
    self.pool.release(sample.pages)

  def cancel(self, request_id: int, index: int | None = None) -> None:
    """Ends one sample of a request, or with None all."""
    meant = lambda request, i: request.id == request_id and index in (None, i)
    for prefill in (*self.reading, *self.waiting):
      prefill.samples = [(i, state) for i, state in prefill.samples if not meant(prefill.request, i)]
    for prefill in [p for p in self.reading if not p.samples]:
      self.reading.remove(prefill)
      self._let_go(prefill)
    self.waiting = collections.deque(p for p in self.waiting if p.samples)
    for sample in [s for s in self.ready if meant(s.request, s.index)]:
      self.ready.remove(sample)
      self.pool.release(sample.pages)
    for sample in [s for s in self.running if meant(s.request, s.index)]:
      self.end(sample)

  def flush(self) -> None:
    """What half-read prompts have read is read again, and no prefix is known any more."""
    while self.reading:
      self._restart(self.reading.pop())
    self.pool.flush()

  def _drawing(self) -> list[Sample]:
    return [s for s in self.running if s.drawn < s.request.options.max_tokens]

  def _last_place(self, sample: Sample) -> int:
    """Where the last token of the next call goes, guesses and further steps included."""
    return min(sample.read + max(self.drafts, self.steps - 1), len(sample.request.prompt.tokens) + sample.request.options.max_tokens - 2)

  def _pages_wanted(self, sample: Sample) -> int:
    new = self._last_place(sample) // self.pool.size + 1 - len(sample.pages)
    return new + self._writes_to_shared(sample)

  def _writes_to_shared(self, sample: Sample) -> bool:
    page = sample.read // self.pool.size
    return page < len(sample.pages) and self.pool.shared(sample.pages[page])

  def _make_room(self, sample: Sample, copies) -> None:
    if self._writes_to_shared(sample):
      page = sample.read // self.pool.size
      (own,) = self.pool.take(1)
      copies.append((sample.pages[page], own))
      self.pool.release([sample.pages[page]])
      sample.pages[page] = own
    sample.pages += self.pool.take(self._last_place(sample) // self.pool.size + 1 - len(sample.pages))

  def _begin_reading(self) -> None:
    """Starts on waiting prompts, in order, while their pages, tiles and slots are there."""
    while self.waiting and len(self.running) + len(self.ready) + len(self.reading) < self.slots:
      prefill = self.waiting[0]
      found = self.pool.find(prefill.keys)
      wanted = -(-prefill.end // self.pool.size) - len(found)
      others = sum(max(1, self._pages_wanted(s)) for s in (*self.running, *self.ready))  # soon
      pages = self.pool.take(wanted) if wanted + others <= self.pool.free or not others else None
      if pages is None:
        self.pool.release(found)
        return
      prefill.pages, prefill.read = [*found, *pages], len(found) * self.pool.size
      if not self._hold_tiles(prefill):
        self._let_go(prefill)
        return
      self.waiting.popleft()
      self.prefix_tokens += prefill.read
      if prefill.read == prefill.end:
        self._fork(prefill)
      else:
        self.reading.append(prefill)

  def _hold_tiles(self, prefill) -> bool:
    unread = prefill.vision_index[prefill.read :]
    tiles = np.unique(unread[unread >= 0] // self.tokens_per_tile)
    prompt, digests = prefill.request.prompt, prefill.request.digests
    if not len(tiles):
      return True
    places = self.images.hold({digests[i]: (prompt.tiles[i], int(prompt.tile_places[i])) for i in tiles})
    prefill.places = places or {}
    return places is not None

  def _prefill_rows(self) -> list[tuple[Prefill, int, int]]:
    """(prompt, first token, end) of each row, and the prompts moved on by them."""
    rows = []
    for prefill in self.reading:
      while prefill.read < prefill.end and len(rows) < self.prefill_rows:
        stop = min(prefill.read + ROW, prefill.end)
        rows.append((prefill, prefill.read, stop))
        prefill.read = stop
    return rows

  def _fork(self, prefill: Prefill) -> None:
    """The samples of a prompt that is read go on, sharing its pages."""
    self.pool.keep(prefill.pages[: len(prefill.keys)], prefill.keys)
    for _ in prefill.samples[1:]:
      self.pool.hold(prefill.pages)
    for index, state in prefill.samples:
      self.ready.append(Sample(prefill.request, index, prefill.tokens.tolist(), state, list(prefill.pages), prefill.end))
    self._release_tiles(prefill)

  def _send_back(self, sample: Sample) -> None:
    """A sample whose pages are taken reads its text again, before all that wait."""
    self.pool.release(sample.pages)
    self.waiting.appendleft(self._prefill(sample.request, np.asarray(sample.tokens, np.int32), [(sample.index, sample.state)]))

  def _restart(self, prefill: Prefill) -> None:
    self._let_go(prefill)
    self.waiting.appendleft(prefill)

  def _let_go(self, prefill: Prefill) -> None:
    self.pool.release(prefill.pages)
    prefill.pages, prefill.read = [], 0
    self._release_tiles(prefill)

  def _release_tiles(self, prefill: Prefill) -> None:
    if prefill.places:
      self.images.release(list(prefill.places))
      prefill.places = {}

  def shapes(self) -> list[programs.Shape]:
    """All that a step can have."""
    kinds = [(rows, 1) for rows in (0, _FEW_ROWS, self.prefill_rows)] + [(0, self.steps)]
    return list(dict.fromkeys(self._shape(d, r, p, n) for p in self._page_counts for d in self._decodes for r, n in kinds))

  def _shape(self, drawing: int, rows: int, pages: int, steps: int) -> programs.Shape:
    prefills = next(c for c in (0, _FEW_ROWS, self.prefill_rows) if c >= rows)
    # With prefills there is one number of decodes only: programs are few.
    decodes = next(n for n in self._decodes if n >= (self.slots if rows else drawing))
    return programs.Shape(decodes, self.drafts, prefills, next(n for n in self._page_counts if n >= pages), steps)

  def _laid_out(self, drawing, rows, copies, entering) -> Plan:
    # What a draw can be asked beyond PLAIN has branches, at which a GPU waits for its host: nothing is won by several steps.
    alone = not rows and all(s.request.asks <= sampling.PLAIN for s in drawing)
    pages = max([len(s.pages) for s in drawing] + [len(p.pages) for p, _, _ in rows])
    shape = self._shape(len(drawing), len(rows), pages, self.steps if alone else 1)
    batch = programs.Batch.empty(shape, self.slots)
    for i, sample in enumerate(drawing):
      batch.slots_S[i], batch.positions_S[i] = sample.slot, sample.read
      batch.tables_SM[i, : len(sample.pages)] = sample.pages
    for i, (prefill, start, stop) in enumerate(rows):
      n = stop - start
      batch.tokens_CB[i, :n], batch.positions_CB[i, :n] = prefill.tokens[start:stop], np.arange(start, stop)
      batch.tables_CM[i, : len(prefill.pages)] = prefill.pages
      batch.vision_CB[i, :n] = self._visual_places(prefill, start, stop)
    return Plan(shape, batch, drawing, copies, entering)

  def _visual_places(self, prefill, start, stop):
    index, N = prefill.vision_index[start:stop], self.tokens_per_tile
    place = [prefill.places[prefill.request.digests[i // N]] if i >= 0 else 0 for i in index]
    return np.where(index >= 0, np.array(place) * N + index % N, -1)
