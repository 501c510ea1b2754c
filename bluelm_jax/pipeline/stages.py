"""Stages of a Beam pipeline that can be taken up again.

A stage works on blocks. Of every finished block it leaves NAME.json (its counts, written last), and when all blocks are finished,
done.json. A stage whose config or inputs have changed, which its key tells, begins anew, and so do those after it. Between stages only
names of blocks pass through Beam; what they hold lies in files.
"""

import dataclasses
import hashlib
import json
import sys
import threading
import time
from typing import Any, Callable, Iterable

import apache_beam as beam
from etils import epath

import bluelm_jax
from bluelm_jax.pipeline import files


@dataclasses.dataclass(frozen=True)
class Stage:
  """A stage's folder, and a key that says of what its files are made."""

  folder: str
  key: str

  def path(self, name: str) -> str:
    return f"{self.folder}/{name}"

  @property
  def name(self) -> str:
    return self.folder.rsplit("/", 1)[-1]

  def open(self) -> bool:
    """Makes the folder ready; whether the stage has been done."""
    folder = epath.Path(self.folder)
    if not files.exists(self.path("key")) or files.read(self.path("key")).decode() != self.key:
      folder.rmtree(missing_ok=True)
      folder.mkdir(parents=True, exist_ok=True)
      files.write(self.path("key"), self.key.encode())
    for part in folder.glob("*.part"):
      part.unlink()
    return files.exists(self.path("done.json"))

  def counts(self) -> dict[str, dict[str, Any]]:
    """Block -> what the stage said of it."""
    return {name: files.read_json(self.path(f"{name}.json")) for name in files.read_json(self.path("done.json"))}


def key(*parts: Any) -> str:
  """A digest of anything that JSON can say, and of this version of the code."""
  return hashlib.sha256(json.dumps([bluelm_jax.__version__, *parts], sort_keys=True, default=list).encode()).hexdigest()


def finish(stage: Stage, name: str, work: Callable[[], dict[str, Any]]) -> str:
  """Does a block's work unless it has been done; `work` writes its files and returns its counts."""
  if not files.exists(stage.path(f"{name}.json")):
    files.write_json(stage.path(f"{name}.json"), work())
  return name


def mark(names: Iterable[str], stage: Stage, check: Callable[[Stage], None] | None = None) -> list[str]:
  """Says that the stage is done, once `check` has seen its counts."""
  names = sorted(names)
  files.write_json(stage.path("done.json"), names)
  if check:
    try:
      check(stage)
    except ValueError:
      epath.Path(stage.path("done.json")).unlink()
      raise
  return names


class Done(beam.PTransform):
  """Waits for all blocks of a stage, marks it done and gives the blocks out again, evenly over workers."""

  def __init__(self, stage: Stage, check: Callable[[Stage], None] | None = None):
    super().__init__()
    self._stage, self._check = stage, check

  def expand(self, names):
    return names | beam.combiners.ToList() | beam.FlatMap(mark, self._stage, self._check) | beam.Reshuffle()


class Progress(threading.Thread):
  """Says on stderr every few seconds how far the stages are, by the files that finished blocks leave: so any runner is seen."""

  def __init__(self, todo: list[Stage], blocks: int, every: float = 2.0):
    super().__init__(daemon=True)
    self._stages, self._blocks, self._every = todo, blocks, every
    self._seen, self._documents, self._since, self._ended = {}, {}, {}, threading.Event()

  def __exit__(self, *_):
    self._ended.set()
    self.join()

  def __enter__(self):
    self.start()
    return self

  def run(self):
    last = ""
    while True:
      over = self._ended.wait(self._every)
      for stage in self._stages:
        line = self._look(stage)
        if line and line != last:
          print(line, file=sys.stderr, flush=True)
          last = line
      if over:
        return

  def _look(self, stage: Stage) -> str:
    """A line, if the stage has got on since the last look."""
    seen = self._seen.setdefault(stage.name, set())
    now = {p.name for p in epath.Path(stage.folder).glob("*.json")} - {"done.json"}
    if not now - seen:
      return ""
    since = self._since.setdefault(stage.name, time.monotonic() - self._every)
    for name in now - seen:
      self._documents[stage.name] = self._documents.get(stage.name, 0) + files.read_json(stage.path(name)).get("documents", 0)
    seen |= now
    count = self._documents[stage.name]
    return f"{stage.name}: {len(now)}{' files' if stage.name in ('select', 'write') else f'/{self._blocks} blocks'}, {count:,} documents, {count / (time.monotonic() - since):,.0f} a second"
