"""What a teacher said of a stage's batches, on disk: the likeliest tokens of every position with loss.

  WORKDIR/stage.json                            the stage that wrote it; model.json and tokenizer.json are its teacher's
  WORKDIR/top_k/FIRST-STOP.PART-of-PARTS.npz    batches FIRST to STOP - 1: the rows of one of the processes that wrote them

A file is whole or not there, and zip's checksums tell where it is damaged. Batches are counted from 0 in the order in which
the data come, which the config fixes. Read in that order, they need no index: one of examples would be too large for a host at
the size of pretraining, and the batches are the same in any case while the config is. The price: another order, packing or
seed needs another store, and an example that comes twice is stored twice. Inside a batch rows are found by a checksum of
their content, so that the mesh, which deals rows to data-parallel ranks, may differ.

Shapes: B rows of a batch, S sequence, K tokens kept, N positions with loss, R rows of a file.
"""

import collections
import hashlib
import json
import os
import pathlib
import re
from typing import NamedTuple
import zipfile

import numpy as np

from bluelm_jax.data import pack
from bluelm_jax.data.batch import PackedBatch
from bluelm_jax.data.batch import Top
from bluelm_jax.training import accumulate
from bluelm_jax.training import record

_NAME = re.compile(r"(\d+)-(\d+)\.(\d+)-of-(\d+)\.npz")
# What fixes which rows come in which batch, and what is stored of them.
_SAME = ("seed", "data.rows", "data.length", "data.tile_slots", "data.overlong", "data.sources", "distill.top_k", "distill.temperature")


class Row(NamedTuple):
  """Of one row: its batch, checksum, and of its N positions with loss float16 [N, K + 1] and ids [N, K]; see `batch.Top`."""

  batch: int
  checksum: int
  log_probs: np.ndarray
  ids: np.ndarray


def checksum(batch: PackedBatch, row: int, tokens_per_tile: int) -> int:
  """64 bits of all that a teacher and a loss read of a row, its images too."""
  h = hashlib.blake2b(digest_size=8)
  for x_BS in (batch.tokens, batch.targets, batch.loss_weights, batch.segment_ids, batch.positions):
    h.update(np.ascontiguousarray(x_BS[row]))
  visual_S = batch.vision_index[row]
  if (visual_S >= 0).any():
    group, slots = row * len(batch.tiles) // len(batch.tokens), visual_S // tokens_per_tile
    used = np.unique(slots[visual_S >= 0])
    h.update(np.ascontiguousarray(np.where(visual_S >= 0, visual_S - used[0] * tokens_per_tile, -1)))  # of the row, not of its group
    h.update(np.ascontiguousarray(batch.tiles[group, used]))
    h.update(np.ascontiguousarray(batch.tile_places[group, used]))
  return int.from_bytes(h.digest(), "little")


def id_type(vocabulary: int) -> np.dtype:
  """The smallest unsigned integers that hold its ids."""
  return np.min_scalar_type(vocabulary - 1)


def save(workdir, first: int, stop: int, rows: list[Row], part: int, parts: int, state: dict) -> None:
  """Writes a file of `rows`, which are this process's of the batches from `first` to before `stop`.

  Args:
    state: of the data after these batches, and "groups" of rows; the same in all parts.
  """
  folder = pathlib.Path(workdir) / record.STORE
  folder.mkdir(exist_ok=True)
  path = folder / f"{first:09d}-{stop:09d}.{part}-of-{parts}.npz"
  temporary = path.with_suffix(".tmp")
  with open(temporary, "wb") as f:
    np.savez(
        f, batch=np.array([r.batch for r in rows], np.int64), checksum=np.array([r.checksum for r in rows], np.uint64),
        count=np.array([len(r.ids) for r in rows], np.int64), log_probs=_one([r.log_probs for r in rows]), ids=_one([r.ids for r in rows]),
        state=np.array(json.dumps(state)))
    f.flush()
    os.fsync(f.fileno())
  temporary.rename(path)


def _one(arrays: list[np.ndarray]) -> np.ndarray:
  return np.concatenate(arrays) if arrays else np.zeros((0, 0))  # ranks of other processes may hold all rows


def pieces(workdir) -> list[tuple[int, int, list[pathlib.Path]]]:
  """(first batch, the one after the last, files) without a gap from batch 0; sets that lack a part are not there."""
  sets = collections.defaultdict(list)
  for path in sorted((pathlib.Path(workdir) / record.STORE).glob("*.npz")):
    if found := _NAME.fullmatch(path.name):
      first, stop, _, parts = map(int, found.groups())
      sets[first, stop, parts].append(path)
  whole = {first: (first, stop, files) for (first, stop, parts), files in sorted(sets.items()) if len(files) == parts}
  chain, at = [], 0
  while at in whole:
    chain.append(whole[at])
    at = whole[at][1]
  return chain


def stop(workdir) -> int:
  """How many batches are stored."""
  return max((stop for _, stop, _ in pieces(workdir)), default=0)


def state(workdir) -> dict | None:
  """Of the data after the stored batches; None where there are none."""
  chain = pieces(workdir)
  return json.loads(str(_read(chain[-1][2][0], "state")["state"])) if chain else None


def _read(path: pathlib.Path, *names: str) -> dict[str, np.ndarray]:
  try:
    with np.load(path) as found:
      return {name: found[name] for name in names}
  except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile) as e:
    raise ValueError(f"{path} is damaged; remove it and run the stage that wrote it again") from e


def check_groups(directory, spec: pack.PackSpec, found: dict) -> None:
  """Raises ValueError where batches with images would be laid out for other data-parallel ranks than the stored ones were."""
  if spec.tile_slots and spec.groups != found["groups"]:
    raise ValueError(f"{directory} has batches with images for {found['groups']} data-parallel ranks, this mesh has {spec.groups}; set mesh to as many")


def joined(config, batches: pack.PackIterator, spec: pack.PackSpec):
  """The stage's batches, with what is stored of them where `distill.stored` says so.

  Raises:
    ValueError: no store, one of other batches, or of too few.
  """
  directory = config.distill.stored
  if not directory:
    return batches
  written, own = record.config(directory), record.flat(config.to_dict())
  if written["objective"] != '"teach"':
    raise ValueError(f"distill.stored {directory} is no store of a teacher's words; write one with configs/stages/teach.py")
  of_batches = lambda key: any(key == same or key.startswith(f"{same}.") for same in _SAME)
  for key in sorted(filter(of_batches, written | own)):
    if written.get(key) != own.get(key):
      raise ValueError(
          f"distill.stored {directory} was written with {key} = {written.get(key, 'absent')}, this stage has {own.get(key, 'absent')}; "
          "set it back, or write another store with configs/stages/teach.py")
  needed, there = accumulate.total(config.data.accumulate, config.steps), stop(directory)
  if there < needed:
    raise ValueError(f"distill.stored {directory} holds {there} batches, this stage takes {needed}; run the stage that wrote it on with steps = {needed}")
  check_groups(directory, spec, state(directory))
  return Joined(batches, directory, spec)


class Joined:
  """Batches with what is stored of them; one file set is in memory at a time. Resumes as `batches` do.

  Raises (from `next`):
    ValueError: a damaged file, or a row that the store's batch of this number has not.
  """

  def __init__(self, batches: pack.PackIterator, directory, spec: pack.PackSpec):
    self._batches, self._directory, self._spec = batches, directory, spec
    self._pieces, self._number = pieces(directory), 0
    self._first = self._stop = 0
    self.get_stats, self.get_placed = batches.get_stats, batches.get_placed

  def __iter__(self):
    return self

  def __next__(self) -> PackedBatch:
    batch = next(self._batches)
    rows = self._rows(self._number)
    like = next(iter(rows.values()))
    top = Top(*(np.zeros((*batch.tokens.shape, x.shape[1]), x.dtype) for x in (like.log_probs, like.ids)))
    for row, weights_S in enumerate(batch.loss_weights):
      found = rows.get(checksum(batch, row, self._spec.tokens_per_tile))
      if found is None:
        raise ValueError(
            f"row {row} of batch {self._number} is not what {self._directory} was written from: the data have changed; write another store with configs/stages/teach.py")
      top.log_probs[row, weights_S > 0], top.ids[row, weights_S > 0] = found.log_probs, found.ids
    self._number += 1
    return batch._replace(teacher=top)

  def _rows(self, number: int) -> dict[int, Row]:
    """Rows of a batch by checksum."""
    if not self._first <= number < self._stop:
      piece = next((piece for piece in self._pieces if piece[0] <= number < piece[1]), None)
      if piece is None:  # a run that went back takes more batches than it has steps
        raise ValueError(f"{self._directory} has no batch {number}; run the stage that wrote it on with more steps")
      self._first, self._stop, files = piece
      self._found = [_read(path, "batch", "checksum", "count", "log_probs", "ids") for path in files]
    rows = {}
    for part in self._found:
      ends = np.cumsum(part["count"])
      for i in np.flatnonzero(part["batch"] == number).tolist():
        at = slice(ends[i] - part["count"][i], ends[i])
        rows[int(part["checksum"][i])] = Row(number, int(part["checksum"][i]), part["log_probs"][at], part["ids"][at])
    return rows

  def get_state(self) -> dict:
    return self._batches.get_state() | {"stored": self._number}

  def set_state(self, state: dict) -> None:
    self._batches.set_state(state)
    self._number = state["stored"]
