"""Which source, and which of its elements, is example i of a mixture: a plan of few stretches of constant proportions.

Shares are of tokens and may change with the step, a straight line between the knots given. A source of limited examples ends
where they do, and the others go on in their proportions. All is fixed in advance, so any example is found by its index.

Shapes: J sources, K knots, P points of time.
"""

import bisect
import math
import sys
from typing import NamedTuple, Sequence

import grain
import numpy as np

_PIECES = 64  # of constant shares between two knots


class Part(NamedTuple):
  """A source's place in a mixture.

  Attributes:
    share: of the tokens while all sources last: a number, or ((step, share), ...) with a straight line between.
    mean: tokens an example, about.
    examples: that it gives in all; None without end.
    epoch: examples in one pass through its data; None where it has none.
  """

  share: float | Sequence[tuple[int, float]]
  mean: float
  examples: int | None = None
  epoch: int | None = None


class _Stretch(NamedTuple):
  """Examples from `start` on, before which `counts` were taken of each source, in whole-numbered `proportions`."""

  start: int
  counts: tuple[int, ...]
  proportions: tuple[int, ...]


class Plan(grain.transforms.DatasetSelectionMap):
  """Sources and elements by index, for grain to select by."""

  def __init__(self, parts: Sequence[Part], step_tokens: int):
    """`step_tokens`: of a full batch. Steps of shares count these, so rows that are not full let shares change later."""
    self.parts, self._stretches = tuple(parts), []
    times = _times(self.parts)
    start, counts, tokens = 0, (0,) * len(parts), 0.0
    means = np.array([p.mean for p in parts])
    while True:
      step = tokens / step_tokens
      later = [t for t in times if t > step + 1e-9]
      # Constant up to the next point of time, at the value half-way.
      shares = np.array([_share(p.share, (step + later[0]) / 2 if later else step) for p in parts])
      left = np.array([sys.maxsize if p.examples is None else p.examples - c for p, c in zip(parts, counts)])
      if not left.any():
        break
      weights = np.where(left > 0, shares, 0.0) / means
      if not weights.any():  # those that still have examples have no share now
        if not later:
          break
        tokens = later[0] * step_tokens
        continue
      proportions = _whole(weights)
      mean = float(np.dot(proportions, means)) / sum(proportions)
      last = max(math.ceil((later[0] * step_tokens - tokens) / mean - 1e-9), 1) if later else sys.maxsize - start
      self._stretches.append(_Stretch(start, counts, proportions))
      length = _length(proportions, left, last)
      taken = _counts(length, proportions)
      start, counts = start + length, tuple(c + t for c, t in zip(counts, taken))
      tokens += length * mean
      if start >= sys.maxsize:
        break
    if not start:
      raise ValueError("no source has a share; raise one over 0")
    self._length = start

  def __len__(self) -> int:
    return self._length

  def __getitem__(self, index: int) -> tuple[int, int]:
    """(source, which of its elements)."""
    stretch = self._at(index)
    source, element = _pick(index - stretch.start, stretch.proportions)
    return source, stretch.counts[source] + element

  def counts(self, index: int) -> tuple[int, ...]:
    """Examples of each source among the first `index`."""
    stretch = self._at(index)
    return tuple(c + n for c, n in zip(stretch.counts, _counts(index - stretch.start, stretch.proportions)))

  def _at(self, index: int) -> _Stretch:
    return self._stretches[bisect.bisect_right(self._stretches, index, key=lambda s: s.start) - 1]


def _times(parts: Sequence[Part]) -> list[float]:
  """Steps at which shares change: knots, and points between two whose shares differ."""
  found = set()
  for p in parts:
    knots = p.share if isinstance(p.share, Sequence) else ()
    for (a, left), (b, right) in zip(knots, knots[1:]):
      found.update(np.linspace(a, b, _PIECES + 1 if left != right else 2).tolist())
    found.update(float(step) for step, _ in knots)
  return sorted(found)


def _share(share, step: float) -> float:
  if not isinstance(share, Sequence):
    return share
  return float(np.interp(step, *zip(*share)))


def _whole(weights: np.ndarray) -> tuple[int, ...]:
  """Whole-numbered proportions, the smallest 100; what is below a millionth of the largest counts as nothing."""
  kept = np.where(weights < weights.max() * 1e-6, 0.0, weights)
  kept = kept / kept.sum()
  return tuple(int(w * (100 / kept[kept > 0].min())) for w in kept)


def _counts(n: int, proportions: Sequence[int]) -> list[int]:
  """How many of the first n examples each source gives: even at every n, n in all."""
  remaining, found = sum(proportions), []
  for p in proportions:
    rest = n * (remaining - p) // remaining if remaining else 0
    found.append(n - rest)
    n, remaining = rest, remaining - p
  return found


def _pick(n: int, proportions: Sequence[int]) -> tuple[int, int]:
  """(source of example n, how many the source gave before it)."""
  before, after = _counts(n, proportions), _counts(n + 1, proportions)
  source = next(i for i, (a, b) in enumerate(zip(before, after)) if a != b)
  return source, before[source]


def _length(proportions: Sequence[int], left: np.ndarray, last: int) -> int:
  """The most examples, up to `last`, of which no source gives more than it has left."""
  fits = lambda n: all(c <= l for c, l in zip(_counts(n, proportions), left.tolist()))
  return bisect.bisect_left(range(last), True, key=lambda n: not fits(n + 1))
