"""Packing: Examples into PackedBatches, filling tokens and tiles together.

Shapes: B rows, S sequence, R row groups, T tile slots of a group, N visual tokens a tile.
"""

import dataclasses

import grain
import numpy as np

from bluelm_jax.data.batch import Example
from bluelm_jax.data.batch import PackedBatch


_HOPELESS = 1000  # examples dropped for one batch before we say so


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
  """One batch in the making; best fit over rows."""

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

  def add(self, example: Example) -> bool:
    """Places the example in the fullest row that has room; False if none has."""
    s, n, t = self.spec, len(example.tokens), len(example.tiles)
    group_of_row = np.arange(s.rows) // (s.rows // s.groups)
    fits = (self.used + n <= s.length) & (self.tiles_used[group_of_row] + t <= s.tile_slots)
    if not fits.any():
      return False
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
    return True


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


def pack(examples, spec: PackSpec):
  """Yields PackedBatches from an iterable of Examples; the last may be partly empty."""
  packer = Packer(spec)
  for example in examples:
    example = fit(example, spec)
    if example is None:
      continue
    if not packer.add(example):
      yield packer.batch
      packer = Packer(spec)
      assert packer.add(example)
  if packer.used.any():
    yield packer.batch


class PackIterator:
  """Iterates over PackedBatches of a dataset's examples; `set_state(get_state())` resumes at an example, in O(1).

  Args:
    examples: random access to Examples; batches hold them in order, whatever the workers.
    workers: processes that read ahead; 0 reads in a thread of this one.
  """

  def __init__(self, examples: grain.MapDataset, spec: PackSpec, workers: int = 0):
    self._examples, self._spec, self._workers = examples, spec, workers
    self.set_state({"next_index": 0})

  def __iter__(self):
    return self

  def __next__(self) -> PackedBatch:
    packer = Packer(self._spec)
    if self._carried is not None:
      assert packer.add(self._carried)
    dropped = 0
    while dropped < _HOPELESS:
      self._start = self._read
      self._carried = fit(next(self._reader), self._spec)
      self._read += 1
      if self._carried is None:
        dropped += 1
      elif not packer.add(self._carried):
        return packer.batch
    raise ValueError(
        f"{_HOPELESS} examples did not fit into {self._spec.length} tokens and {self._spec.tile_slots} tiles; raise data.length or data.tile_slots")

  def get_state(self) -> dict[str, int]:
    """Where the first example of the next batch stands."""
    return {"next_index": self._start}

  def set_state(self, state: dict[str, int]) -> None:
    self._start = self._read = state["next_index"]
    self._carried = None  # did not fit into the last batch; read again after a restore
    # Few threads: the training step wants the cores.
    ahead = self._examples[self._start :].to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=32))
    if self._workers:
      ahead = ahead.mp_prefetch(grain.MultiprocessingOptions(num_workers=self._workers, per_worker_buffer_size=16))
    self._reader = iter(ahead)
