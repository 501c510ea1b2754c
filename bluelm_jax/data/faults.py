"""Data that cannot be used: what is wrong, where it lies, and when there is too much of it."""

import collections
import contextlib
import json
import pathlib
from typing import NamedTuple, Sequence

_FEWEST = 1000  # examples on which a share is first judged


class Fault(ValueError):
  """A record that cannot be used; `kind` is the part at fault: record, image, document or conversation."""

  def __init__(self, kind: str, message: str):
    super().__init__(message)
    self.kind = kind


@contextlib.contextmanager
def of(kind: str):
  """Gives what is refused inside its kind."""
  try:
    yield
  except Fault:
    raise
  except ValueError as e:
    raise Fault(kind, " ".join(str(e).split())) from e


class Bad(NamedTuple):
  """What stands at the place of an example that could not be made.

  Attributes:
    source: index of the source in the mixture.
    file: path of the data file.
    record: index in the file.
    kind: see `Fault`.
    message: one line.
  """

  source: int
  file: str
  record: int
  kind: str
  message: str


class Quarantine:
  """Counts bad examples, writes each bad record once to a file, and stops a run that has too many.

  Attributes:
    counts: kind -> bad examples so far.
  """

  def __init__(self, names: Sequence[str], path=None, max_share: float = 0.01):
    """
    Args:
      names: of the sources, in the mixture's order.
      path: a JSONL file, made with its first line; None where nothing is to be written.
      max_share: of the examples read.
    """
    self._names, self._path, self._max_share = names, path and pathlib.Path(path), max_share
    self.counts = collections.Counter()
    self._known = _places(self._path) if self._path and self._path.exists() else set()

  def add(self, bad: Bad, read: int) -> None:
    """Takes in a bad example; ValueError when there are too many among the `read` so far."""
    self.counts[bad.kind] += 1
    entry = {"source": self._names[bad.source], "file": bad.file, "index": bad.record, "kind": bad.kind, "message": bad.message}
    if self._path and _place(entry) not in self._known:
      self._known.add(_place(entry))
      self._path.parent.mkdir(parents=True, exist_ok=True)
      with open(self._path, "a", encoding="utf-8") as f:
        f.write(json.dumps(entry) + "\n")
    total = self.counts.total()
    if total > min(self._max_share, 0.999) * max(read, _FEWEST):
      kinds = ", ".join(f"{n} {kind}" for kind, n in self.counts.most_common())
      listed = f"; all are in {self._path}" if self._path else ""
      raise ValueError(
          f"{total} of {read} examples are bad ({kinds}), the last because {bad.message}{listed}; mend the data, or raise data.max_bad_share = {self._max_share}")


def _place(entry: dict) -> tuple:
  return entry["source"], entry["file"], entry["index"]


def _places(path: pathlib.Path) -> set[tuple]:
  """What a quarantine file lists already; a killed run may have left half a line at its end."""
  lines = path.read_text("utf-8").splitlines(keepends=True)
  if lines and not lines[-1].endswith("\n"):
    path.write_text("".join(lines[:-1]), "utf-8")
  return {_place(json.loads(line)) for line in lines if line.endswith("\n")}
