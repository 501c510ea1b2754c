"""Whether long samples need their length: a measure without a model.

A *term* is a word or identifier of four characters and more, or four Han characters in a row (every such run, overlapping). Positions
are tokens: a character's place times the tokens a character of the sample. A *piece* is N tokens of a sample, counted from its start.
A term is *rare* if it stands in at most 2 % of the pieces that are looked at (or in 2, without which nothing returns).

  far      of the rare terms at positions over N that the last N tokens do not hold, the share that the sample holds further back:
           what a reader of N tokens meets as new, and a reader of the whole knows.
  control  the same of samples dealt out of pieces of different samples: what chance does, in long rows joined at random.
  true     far - control, but not under 0: the true long-range share.

In samples joined from unrelated short documents far is about control. The measure sees words that return, not thoughts: it is no
estimate of what a model gains, but it orders data sets, and it exposes rows that are long in name alone.

  beyond   the share of all tokens at positions over N.
  own      the share of all tokens that lie over N tokens behind the start of their own document.
"""

import re
from typing import NamedTuple, Sequence

import numpy as np

_TERM = re.compile("(?=([\u4e00-\u9fff]{4}))|([^\\W\\d_\u4e00-\u9fff][^\\W\u4e00-\u9fff]{3,})")
_RARE = 0.02
_MOST = 64  # samples of a shard and kind in which terms are looked for; lengths are of all
COUNTS = ("samples", "tokens", "beyond", "own", "new", "far", "control_new", "control_far")


class Terms(NamedTuple):
  """Terms of samples, all int64 [M]: `term` (equal numbers are equal terms), `sample`, `place` in tokens."""

  term: np.ndarray
  sample: np.ndarray
  place: np.ndarray


def terms(texts: Sequence[str], tokens: Sequence[int]) -> Terms:
  """The terms of samples of so many tokens."""
  numbers: dict[str, int] = {}
  found = [[], [], []]
  for i, (text, count) in enumerate(zip(texts, tokens)):
    rate = count / max(len(text), 1)
    for match in _TERM.finditer(text):
      found[0].append(numbers.setdefault(match[1] or match[2].lower(), len(numbers)))
      found[1].append(i)
      found[2].append(int(match.start() * rate))
  return Terms(*(np.array(values, np.int64) for values in found))


def rare(found: Terms, n: int) -> np.ndarray:
  """bool [M]: which occurrences are of rare terms."""
  if not len(found.term):
    return np.zeros(0, bool)
  pairs = np.unique(np.stack([found.term, found.sample, found.place // n], 1), axis=0)
  pieces = len(np.unique(pairs[:, 1:], axis=0))
  return np.bincount(pairs[:, 0])[found.term] <= max(_RARE * pieces, 2)


def far(found: Terms, is_rare: np.ndarray, n: int) -> tuple[int, int]:
  """(rare terms at positions over n that the last n tokens do not hold, those of them that the sample holds further back)."""
  order = np.lexsort((found.place, found.sample, found.term))
  term, sample, place = (values[order] for values in found)
  again = np.zeros(len(term), bool)
  again[1:] = (term[1:] == term[:-1]) & (sample[1:] == sample[:-1])
  back = np.diff(place, prepend=0)
  new = is_rare[order] & (place > n) & ~(again & (back <= n))
  return int(new.sum()), int((new & again).sum())


def shuffled(found: Terms, n: int) -> tuple[np.ndarray, Terms]:
  """The same pieces dealt out anew, so that every new sample has pieces of different samples alone.

  Returns bool [M], which terms are used (some pieces are left over), and these.
  """
  piece = found.place // n
  pieces, at = np.unique(np.stack([piece, found.sample], 1), axis=0, return_inverse=True)  # all first pieces, then all second ones, ...
  at, size = at.ravel(), max(min(len(np.unique(found.sample)), int(piece.max(initial=0)) + 1), 1)
  dealt = np.sort(pieces[: len(pieces) // size * size, 1].reshape(-1, size), axis=1)
  sound = (dealt[:, 1:] != dealt[:, :-1]).all(axis=1) & (size > 1)
  use = np.append(sound, False)[at // size]  # the last few are not enough for a sample
  return use, Terms(found.term[use], (at // size)[use], (at % size * n + found.place % n)[use])


def _control(found: Terms, is_rare: np.ndarray, n: int) -> tuple[int, int]:
  use, dealt = shuffled(found, n)
  return far(dealt, is_rare[use], n)


def counts(texts: Sequence[str], tokens: Sequence[int], starts: Sequence[Sequence[int]], n: int) -> dict[str, int]:
  """What the shares are quotients of (see COUNTS), of samples that are compared with each other.

  Args:
    texts, tokens: of each sample, in an order by chance: terms are looked for in the first.
    starts: characters at which each one's documents begin, from 0.
    n: tokens that count as near.
  """
  found = terms(texts[:_MOST], tokens[:_MOST])
  is_rare = rare(found, n)
  own = 0
  for text, count, begins in zip(texts, tokens, starts):
    lengths = np.diff([*begins, len(text)]) * count / max(len(text), 1)
    own += int(np.maximum(lengths - n, 0).sum())
  numbers = (len(texts), sum(tokens), sum(max(count - n, 0) for count in tokens), own, *far(found, is_rare, n), *_control(found, is_rare, n))
  return dict(zip(COUNTS, numbers))


def shares(total: dict[str, int]) -> dict[str, float | int | None]:
  """The report, from counts that may be sums over shards; None where nothing could be compared."""
  def share(a, b):
    return total[a] / total[b] if total[b] else None

  found = {"far": share("far", "new"), "control": share("control_far", "control_new")}
  true = None if None in found.values() else max(found["far"] - found["control"], 0.0)
  return {"samples": total["samples"], "tokens": total["tokens"], "beyond": share("beyond", "tokens"), "own": share("own", "tokens"), **found, "true": true}
