"""Packing: Examples into PackedBatches, filling tokens and tiles together.

Shapes: E examples, B rows, S sequence, R row groups, T tile slots of a group, N visual tokens a tile.
"""

import dataclasses
import itertools
import multiprocessing
import os
import pickle
import threading
from typing import Callable
from typing import Iterator
from typing import Sequence

from absl import flags
import grain
import numpy as np

from bluelm_jax.data import balance
from bluelm_jax.data import faults
from bluelm_jax.data import ledger as ledger_lib
from bluelm_jax.data import overlong
from bluelm_jax.data.batch import Example
from bluelm_jax.data.batch import PackedBatch
from bluelm_jax.data.rows import fill_row


_HOPELESS = 1000  # examples dropped for one batch before we say so
# What a row is chosen from: examples, and rows full of tokens. The second where the first does not fill it.
WINDOWS = ((32, 1.25), (128, 2.5))
_CANDIDATES = 1024  # of a list of examples
_FILLED = 0.995  # of a row's tokens
_CHUNK = 16  # examples that a reader process sends at once


@dataclasses.dataclass(frozen=True)
class PackSpec:
  """The fixed shapes of a batch, and what becomes of examples that exceed them.

  Attributes:
    rows: B.
    length: S, tokens.
    groups: R; rows // groups rows share the tiles of their group, which one data-parallel rank holds.
    tile_slots: T; 0 for text only. About 3 % above what full rows of the data need: with fewer, rows stay partly empty.
    tile_size: pixels a side.
    tokens_per_tile: N.
    overlong: a name of `overlong.POLICIES`.
  """

  rows: int
  length: int
  groups: int = 1
  tile_slots: int = 0
  tile_size: int = 1
  tokens_per_tile: int = 1
  overlong: str = "truncate"

  def __post_init__(self):
    if self.rows % self.groups:
      raise ValueError(f"batch rows {self.rows} must be a multiple of the {self.groups} data-parallel groups")
    if self.overlong not in overlong.POLICIES:
      raise ValueError(f"data.overlong {self.overlong!r} is unknown; use {', '.join(overlong.POLICIES)}")


def pieces(example: Example, spec: PackSpec) -> list[Example]:
  """The example, or what `spec.overlong` leaves of it."""
  return overlong.pieces(example, spec.length, spec.tile_slots, spec.tokens_per_tile, spec.overlong)


def empty(spec: PackSpec) -> PackedBatch:
  """A batch of padding."""
  s = spec
  return PackedBatch(
      tokens=np.zeros((s.rows, s.length), np.int32),
      targets=np.zeros((s.rows, s.length), np.int32),
      loss_weights=np.zeros((s.rows, s.length), np.float32),
      segment_ids=np.zeros((s.rows, s.length), np.int32),
      positions=np.zeros((s.rows, s.length), np.int32),
      tiles=np.zeros((s.groups, s.tile_slots, s.tile_size, s.tile_size, 3), np.uint8),
      vision_index=np.full((s.rows, s.length), -1, np.int32),
      tile_places=np.zeros((s.groups, s.tile_slots), np.int32),
      sources=np.zeros((s.rows, s.length), np.int32),
  )


def lay_out(rows: Sequence[Sequence[Example]], b: PackedBatch, tokens_per_tile: int) -> PackedBatch:
  """Writes examples into the rows of an empty batch and returns it; rows that are not given stay empty."""
  tiles_used = [0] * len(b.tiles)
  for row, examples in enumerate(rows):
    used, segment, group = 0, 0, row * len(b.tiles) // len(b.tokens)
    for e in examples:
      n, t, first = len(e.tokens), len(e.tiles), tiles_used[group]
      at, slots = slice(used, used + n), slice(first, first + t)
      b.tokens[row, at], b.targets[row, at], b.loss_weights[row, at] = e.tokens, e.targets, e.loss_weights
      for start, stop in zip(e.starts, (*e.starts[1:], n)):
        segment += 1
        b.segment_ids[row, used + start : used + stop] = segment
        b.positions[row, used + start : used + stop] = np.arange(stop - start)
      b.sources[row, at] = e.source
      if t:
        b.vision_index[row, at] = np.where(e.vision_index >= 0, e.vision_index + first * tokens_per_tile, -1)
        b.tiles[group, slots], b.tile_places[group, slots] = e.tiles, e.tile_places
      used += n
      tiles_used[group] += t
  return b


def draw_rows(waiting: list[tuple[tuple, Example]], spec: PackSpec, read: Callable[[int, float], None] = lambda *window: None) -> list[list[tuple[tuple, Example]]]:
  """Takes the rows of a batch from those that wait, (any key, Example) in order of precedence, and deals them to the groups.

  Args:
    read: called with numbers of examples and of tokens; appends to `waiting` until it holds both.
  """
  rows, loads = [], []
  for _ in range(spec.groups):
    slots = spec.tile_slots
    for left in range(spec.rows // spec.groups, 0, -1):
      for examples, full in WINDOWS:
        read(examples, full * spec.length)
        among = range(len(waiting)) if len(waiting) <= _CANDIDATES else np.linspace(0, len(waiting) - 1, _CANDIDATES).astype(int)
        n_E, t_E = [len(waiting[i][1].tokens) for i in among], [len(waiting[i][1].tiles) for i in among]
        chosen = fill_row(n_E, t_E, spec.length, slots, slots / left)
        n, t = [n_E[i] for i in chosen], sum(t_E[i] for i in chosen)
        if sum(n) >= _FILLED * spec.length:
          break
      rows.append([waiting[among[i]] for i in chosen])
      attention = sum(int(np.sum(np.diff([*e.starts, len(e.tokens)]) ** 2)) for _, e in rows[-1])
      for i in reversed(chosen):
        del waiting[among[i]]
      loads.append((sum(n), attention, t))
      slots -= t
  return [rows[i] for i in balance.assign(np.array(loads, float), spec.groups, spec.tile_slots)]


def pack(examples: Sequence[Example], spec: PackSpec) -> Iterator[PackedBatch]:
  """Yields PackedBatches of a list of Examples, the longest first; the last may be partly empty."""
  waiting = [((), piece) for example in examples for piece in pieces(example, spec)]
  waiting.sort(key=lambda item: -len(item[1].tokens))
  while waiting:
    yield lay_out(_examples(draw_rows(waiting, spec)), empty(spec), spec.tokens_per_tile)


def _examples(rows) -> list[list[Example]]:
  return [[example for _, example in row] for row in rows]


class PackIterator:
  """Iterates over PackedBatches of examples; `set_state(get_state())` resumes at an example, in O(1).

  Each row takes the example that has waited longest and those of a window that fill it best. So batches of another
  size, or of other row groups, take the examples in the same order but for that window. The last batch may be partly
  empty.

  Args:
    examples: random access to Examples, or `faults.Bad` in their place; how they fill batches does not depend on the workers.
    workers: processes that read ahead; 0 reads in a thread of this one.
    ledger: counts what is placed and what is bad; without one, a bad example is a ValueError.
  """

  def __init__(self, examples: grain.MapDataset, spec: PackSpec, workers: int = 0, ledger: ledger_lib.Ledger | None = None):
    self._examples, self._spec, self._workers, self._ledger = examples, spec, workers, ledger
    self._source = None
    self.set_state({"next_index": 0, "waiting": []})

  def __iter__(self):
    return self

  def __next__(self) -> PackedBatch:
    self._vain = 0
    batch = empty(self._spec)  # first: no memory for it is found out before anything is read
    rows = draw_rows(self._waiting, self._spec, self._read)
    if not any(rows):
      raise StopIteration
    if self._ledger is not None:
      for _, example in itertools.chain(*rows):
        self._ledger.placed(example)
    self._placed = [(row, example.source, *key) for row, items in enumerate(rows) for key, example in items]
    return lay_out(_examples(rows), batch, self._spec.tokens_per_tile)

  def _read(self, examples: int, tokens: float) -> None:
    """Reads on until as many examples and tokens wait, or the data end."""
    missing = tokens - sum(len(e.tokens) for _, e in self._waiting)
    while (len(self._waiting) < examples or missing > 0) and (example := next(self._reader, None)) is not None:
      self._next += 1
      if isinstance(example, faults.Bad):
        if self._ledger is None:
          raise ValueError(example.message)
        self._ledger.bad(example, self._next)
        continue
      found = pieces(example, self._spec)
      self._waiting += [((self._next - 1, number), piece) for number, piece in enumerate(found)]
      missing -= sum(len(piece.tokens) for piece in found)
      self._counts["cut"] += bool(found) and found[0] is not example
      self._counts["dropped"] += not found
      self._vain = 0 if found else self._vain + 1
      if self._vain == _HOPELESS:
        raise ValueError(
            f"{_HOPELESS} examples did not fit into {self._spec.length} tokens and {self._spec.tile_slots} tiles; raise data.length or data.tile_slots")

  def get_placed(self) -> np.ndarray:
    """Of every example in the last batch: its row, its source, which it is and which piece of it; int64 [examples, 4]."""
    return np.array(self._placed, np.int64)

  def get_stats(self) -> dict[str, float]:
    """Since the first batch: "overlong/cut" and "overlong/dropped" examples if there were any, and what `Ledger.get_stats` says."""
    counts = {f"overlong/{name}": float(n) for name, n in self._counts.items() if n}
    return counts if self._ledger is None else counts | self._ledger.get_stats(self._next)

  def get_state(self) -> dict:
    """The first example that was not read, those that wait as [index, piece], and the counts."""
    counts = {} if self._ledger is None else self._ledger.get_state()
    return {"next_index": self._next, "waiting": [list(key) for key, _ in self._waiting], "overlong": dict(self._counts), **counts}

  def set_state(self, state: dict) -> None:
    self._next = state["next_index"]
    self._counts = {"cut": 0, "dropped": 0} | state.get("overlong", {})
    found = {index: pieces(self._examples[index], self._spec) for index, _ in state["waiting"]}
    self._waiting = [((index, number), found[index][number]) for index, number in state["waiting"]]
    if self._ledger is not None:
      self._ledger.set_state(state)
    ahead, few = self._examples[self._next :], grain.ReadOptions(num_threads=1, prefetch_buffer_size=32)  # the training step wants the cores
    if self._workers:
      if not flags.FLAGS.is_parsed():  # grain hands absl's flags to its processes, also outside a door
        flags.FLAGS.mark_as_parsed()
      options = grain.MultiprocessingOptions(num_workers=self._workers, per_worker_buffer_size=4)
      chunks = ahead.batch(_CHUNK, drop_remainder=False, batch_fn=_as_bytes).to_iter_dataset(few)
      ahead = chunks.mp_prefetch(options, worker_init_fn=_end_with_parent)
    else:
      ahead = ahead.to_iter_dataset(few)
    if self._source is not None:
      self._source.close()  # its processes would read on
    self._source = iter(ahead)
    self._reader = itertools.chain.from_iterable(map(pickle.loads, self._source)) if self._workers else self._source


def _as_bytes(examples: Sequence[Example]) -> np.ndarray:
  """One array of bytes, since each array that a reader sends takes a block of shared memory of its own: a millisecond."""
  return np.frombuffer(pickle.dumps(examples, pickle.HIGHEST_PROTOCOL), np.uint8)


def _end_with_parent(worker: int, workers: int) -> None:
  """Ends a reader whose trainer was killed; it would wait for ever for its examples to be fetched."""
  del worker, workers

  def watch():
    multiprocessing.parent_process().join()
    os._exit(1)

  threading.Thread(target=watch, daemon=True).start()
