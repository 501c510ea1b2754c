"""Packing: Examples into PackedBatches, filling tokens and tiles together.

Shapes: E examples, B rows, S sequence, R row groups, T tile slots of a group, N visual tokens a tile.
"""

import dataclasses
import itertools
import multiprocessing
import os
import pickle
import threading
from typing import Iterator
from typing import Sequence

from absl import flags
import grain
import numpy as np

from bluelm_jax.data import faults
from bluelm_jax.data import ledger as ledger_lib
from bluelm_jax.data.batch import Example
from bluelm_jax.data.batch import PackedBatch


_HOPELESS = 1000  # examples dropped for one batch before we say so
_WINDOW = 32  # examples among which the one to place next is chosen
_CHUNK = 16  # examples that a reader process sends at once


@dataclasses.dataclass(frozen=True)
class PackSpec:
  """The fixed shapes of a batch.

  Attributes:
    rows: B.
    length: S, tokens.
    groups: R; rows // groups rows share the tiles of their group.
    tile_slots: T; 0 for text only.
    tile_size: pixels a side.
    tokens_per_tile: N.
  """

  rows: int
  length: int
  groups: int = 1
  tile_slots: int = 0
  tile_size: int = 1
  tokens_per_tile: int = 1

  def __post_init__(self):
    if self.rows % self.groups:
      raise ValueError(f"batch rows {self.rows} must be a multiple of the {self.groups} data-parallel groups")


class Packer:
  """One batch in the making."""

  def __init__(self, spec: PackSpec):
    self.spec = spec
    s = spec
    self.batch = PackedBatch(
        tokens=np.zeros((s.rows, s.length), np.int32),
        targets=np.zeros((s.rows, s.length), np.int32),
        loss_weights=np.zeros((s.rows, s.length), np.float32),
        segment_ids=np.zeros((s.rows, s.length), np.int32),
        positions=np.zeros((s.rows, s.length), np.int32),
        tiles=np.zeros((s.groups, s.tile_slots, s.tile_size, s.tile_size, 3), np.uint8),
        vision_index=np.full((s.rows, s.length), -1, np.int32),
        tile_places=np.zeros((s.groups, s.tile_slots), np.int32),
    )
    self.used = np.zeros(s.rows, int)
    self.segments = np.zeros(s.rows, int)
    self.tiles_used = np.zeros(s.groups, int)

  def largest(self, examples: Sequence[Example]) -> int | None:
    """Which of the examples is the longest that some row has room for; None if there is none."""
    s = self.spec
    room_R = s.length - self.used.reshape(s.groups, -1).min(1)
    n_E, t_E = np.array([len(e.tokens) for e in examples], int), np.array([len(e.tiles) for e in examples], int)
    fits_E = ((n_E[:, None] <= room_R) & (t_E[:, None] <= s.tile_slots - self.tiles_used)).any(1)
    return int(np.argmax(np.where(fits_E, n_E, -1))) if fits_E.any() else None

  def add(self, example: Example) -> None:
    """Places the example, which fits, in the fullest row that has room."""
    s, n, t = self.spec, len(example.tokens), len(example.tiles)
    group_of_row = np.arange(s.rows) // (s.rows // s.groups)
    fits = (self.used + n <= s.length) & (self.tiles_used[group_of_row] + t <= s.tile_slots)
    assert fits.any()
    row = int(np.argmax(np.where(fits, self.used, -1)))
    group = group_of_row[row]
    at = slice(self.used[row], self.used[row] + n)
    b = self.batch
    self.segments[row] += 1
    b.tokens[row, at], b.targets[row, at] = example.tokens, example.targets
    b.loss_weights[row, at] = example.loss_weights
    b.segment_ids[row, at] = self.segments[row]
    b.positions[row, at] = np.arange(n)
    offset = self.tiles_used[group] * s.tokens_per_tile
    b.vision_index[row, at] = np.where(example.vision_index >= 0, example.vision_index + offset, -1)
    slots = slice(self.tiles_used[group], self.tiles_used[group] + t)
    b.tiles[group, slots] = example.tiles
    b.tile_places[group, slots] = example.tile_places
    self.used[row] += n
    self.tiles_used[group] += t


def fit(example: Example, spec: PackSpec) -> Example | None:
  """The example cut to one row, or None if its images alone do not fit."""
  if len(example.tiles) > spec.tile_slots:
    return None
  if len(example.tokens) <= spec.length:
    return example
  if (example.vision_index[spec.length :] >= 0).any():
    return None
  cut = {f: getattr(example, f)[: spec.length] for f in ("tokens", "targets", "loss_weights", "vision_index")}
  return example._replace(**cut)


def pack(examples: Sequence[Example], spec: PackSpec) -> Iterator[PackedBatch]:
  """Yields PackedBatches of a list of Examples, longest first; the last may be partly empty."""
  waiting = [e for e in (fit(example, spec) for example in examples) if e is not None]
  while waiting:
    packer = Packer(spec)
    while (chosen := packer.largest(waiting)) is not None:
      packer.add(waiting.pop(chosen))
    yield packer.batch


class PackIterator:
  """Iterates over PackedBatches of examples; `set_state(get_state())` resumes at an example, in O(1).

  The next to be placed is the longest that fits of a window of examples, whose rest waits for the next batch. So batches
  of another size, or of other row groups, take the examples in the same order but for that window. The last batch may be
  partly empty.

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
    packer, dropped = Packer(self._spec), 0
    while True:
      while len(self._waiting) < _WINDOW and (found := next(self._reader, None)) is not None:
        self._next += 1
        if isinstance(found, faults.Bad):
          if self._ledger is None:
            raise ValueError(found.message)
          self._ledger.bad(found, self._next)
        elif (example := fit(found, self._spec)) is not None:
          self._waiting.append((self._next - 1, example))
        elif (dropped := dropped + 1) == _HOPELESS:
          raise ValueError(
              f"{_HOPELESS} examples did not fit into {self._spec.length} tokens and {self._spec.tile_slots} tiles; raise data.length or data.tile_slots")
      chosen = packer.largest([example for _, example in self._waiting])
      if chosen is None:
        if not packer.used.any():
          raise StopIteration
        return packer.batch
      _, example = self._waiting.pop(chosen)
      packer.add(example)
      if self._ledger is not None:
        self._ledger.placed(example)

  def get_stats(self) -> dict[str, float]:
    """Figures of the sources for the metrics; see `Ledger.get_stats`."""
    return {} if self._ledger is None else self._ledger.get_stats(self._next)

  def get_state(self) -> dict:
    """The first example that was not read, those that wait, and the ledger's counts."""
    counts = {} if self._ledger is None else self._ledger.get_state()
    return {"next_index": self._next, "waiting": [index for index, _ in self._waiting], **counts}

  def set_state(self, state: dict) -> None:
    self._next = state["next_index"]
    self._waiting = [(index, fit(self._examples[index], self._spec)) for index in state.get("waiting", ())]
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
