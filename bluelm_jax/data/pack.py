"""Packing: Examples into PackedBatches, filling tokens and tiles together.

Shapes: E examples, B rows, S sequence, R row groups, T tile slots of a group, N visual tokens a tile.
"""

import dataclasses
from typing import Callable
from typing import Iterator
from typing import Sequence

from absl import flags
import grain
import numpy as np

from bluelm_jax.data import balance
from bluelm_jax.data import overlong
from bluelm_jax.data.batch import Example
from bluelm_jax.data.batch import PackedBatch
from bluelm_jax.data.rows import fill_row


_HOPELESS = 1000  # examples dropped for one batch before we say so
WINDOWS = (32, 128)  # examples among which those of a row are chosen: the second number where the first does not fill it
_FILLED = 0.995  # of a row's tokens


@dataclasses.dataclass(frozen=True)
class PackSpec:
  """The fixed shapes of a batch, and what becomes of examples that exceed them.

  Attributes:
    rows: B.
    length: S, tokens.
    groups: R; rows // groups rows share the tiles of their group, which one data-parallel rank holds.
    tile_slots: T; 0 for text only. Above what the data need by 2 or 3 %: with fewer, rows stay partly empty.
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
  )


def lay_out(rows: Sequence[Sequence[Example]], b: PackedBatch, tokens_per_tile: int) -> PackedBatch:
  """Writes examples into the rows of an empty batch and returns it; rows that are not given stay empty."""
  tiles_used = [0] * len(b.tiles)
  for row, examples in enumerate(rows):
    used, group = 0, row * len(b.tiles) // len(b.tokens)
    for segment, e in enumerate(examples, 1):
      n, t, first = len(e.tokens), len(e.tiles), tiles_used[group]
      at, slots = slice(used, used + n), slice(first, first + t)
      b.tokens[row, at], b.targets[row, at], b.loss_weights[row, at] = e.tokens, e.targets, e.loss_weights
      b.segment_ids[row, at] = segment
      b.positions[row, at] = np.arange(n)
      if t:
        b.vision_index[row, at] = np.where(e.vision_index >= 0, e.vision_index + first * tokens_per_tile, -1)
        b.tiles[group, slots], b.tile_places[group, slots] = e.tiles, e.tile_places
      used += n
      tiles_used[group] += t
  return b


def draw_rows(waiting: list[tuple[tuple, Example]], spec: PackSpec, read: Callable[[int], None] = lambda window: None) -> list[list[Example]]:
  """Takes the rows of a batch from those that wait, (any key, Example) in order of precedence, and deals them to the groups.

  Args:
    read: called with a number of examples; appends to `waiting` until as many wait.
  """
  rows, loads = [], []
  for _ in range(spec.groups):
    slots = spec.tile_slots
    for left in range(spec.rows // spec.groups, 0, -1):
      for window in WINDOWS:
        read(window)
        among = _spread(len(waiting))
        n_E, t_E = [len(waiting[i][1].tokens) for i in among], [len(waiting[i][1].tiles) for i in among]
        chosen = fill_row(n_E, t_E, spec.length, slots, slots / left)
        n, t = [n_E[i] for i in chosen], sum(t_E[i] for i in chosen)
        if sum(n) >= _FILLED * spec.length:
          break
      rows.append([waiting[among[i]][1] for i in chosen])
      for i in reversed(chosen):
        del waiting[among[i]]
      loads.append((sum(n), sum(x * x for x in n), t))
      slots -= t
  return [rows[i] for i in balance.assign(np.array(loads, float), spec.groups, spec.tile_slots)]


def _spread(count: int) -> Sequence[int]:
  """Of the first `count` indices as many as the largest window has, the first and last among them."""
  return range(count) if count <= WINDOWS[-1] else np.linspace(0, count - 1, WINDOWS[-1]).astype(int)


def pack(examples: Sequence[Example], spec: PackSpec) -> Iterator[PackedBatch]:
  """Yields PackedBatches of a list of Examples, the longest first; the last may be partly empty."""
  waiting = [((), piece) for example in examples for piece in pieces(example, spec)]
  waiting.sort(key=lambda item: -len(item[1].tokens))
  while waiting:
    yield lay_out(draw_rows(waiting, spec), empty(spec), spec.tokens_per_tile)


class PackIterator:
  """Iterates over PackedBatches of endless examples; `set_state(get_state())` resumes at an example, in O(1).

  Each row takes the example that has waited longest and those of a window that fill it best. So batches of another
  size, or of other row groups, take the examples in the same order but for that window.

  Args:
    examples: random access to Examples; how they fill batches does not depend on the workers.
    workers: processes that read ahead; 0 reads in a thread of this one.
  """

  def __init__(self, examples: grain.MapDataset, spec: PackSpec, workers: int = 0):
    self._examples, self._spec, self._workers = examples, spec, workers
    self._reader = None
    self.set_state({"next_index": 0, "waiting": []})

  def __iter__(self):
    return self

  def __next__(self) -> PackedBatch:
    self._vain = 0
    batch = empty(self._spec)  # first: no memory for it is found out before anything is read
    return lay_out(draw_rows(self._waiting, self._spec, self._read), batch, self._spec.tokens_per_tile)

  def _read(self, window: int) -> None:
    """Reads on until as many examples wait."""
    while len(self._waiting) < window:
      example = next(self._reader)
      found = pieces(example, self._spec)
      self._waiting += [((self._next, number), piece) for number, piece in enumerate(found)]
      self._next += 1
      self._counts["examples"] += 1
      self._counts["cut"] += bool(found) and found[0] is not example
      self._counts["dropped"] += not found
      self._vain = 0 if found else self._vain + 1
      if self._vain == _HOPELESS:
        raise ValueError(
            f"{_HOPELESS} examples did not fit into {self._spec.length} tokens and {self._spec.tile_slots} tiles; raise data.length or data.tile_slots")

  def get_stats(self) -> dict[str, int]:
    """Since the first batch: examples read, and how many of them were too long and were cut, or dropped."""
    return dict(self._counts)

  def get_state(self) -> dict:
    """The first example that was not read, those that wait as [index, piece], and the counts."""
    return {"next_index": self._next, "waiting": [list(key) for key, _ in self._waiting], "counts": self.get_stats()}

  def set_state(self, state: dict) -> None:
    self._next = state["next_index"]
    self._counts = {"examples": 0, "cut": 0, "dropped": 0} | state.get("counts", {})
    found = {index: pieces(self._examples[index], self._spec) for index, _ in state["waiting"]}
    self._waiting = [((index, number), found[index][number]) for index, number in state["waiting"]]
    # Few threads: the training step wants the cores.
    ahead = self._examples[self._next :].to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=32))
    if self._workers:
      if not flags.FLAGS.is_parsed():  # grain hands absl's flags to its processes, also outside a door
        flags.FLAGS.mark_as_parsed()
      ahead = ahead.mp_prefetch(grain.MultiprocessingOptions(num_workers=self._workers, per_worker_buffer_size=16))
    if self._reader is not None:
      self._reader.close()  # its processes would read on
    self._reader = iter(ahead)
