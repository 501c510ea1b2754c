"""Documents of a wanted size, slices of about equal size, and the plan of how examples fill rows."""

from typing import Sequence

import numpy as np


def split(text: str, max_bytes: int) -> list[str]:
  """A text cut at ends of paragraphs into pieces of about equal size, none over `max_bytes` UTF-8 bytes unless a paragraph is."""
  if len(text.encode()) <= max_bytes:
    return [text]
  paragraphs = text.split("\n")
  pieces = ["\n".join(paragraphs[part]).strip() for part in even([len(p.encode()) + 1 for p in paragraphs], max_bytes)]
  return [piece for piece in pieces if piece]


def even(sizes: Sequence[int], most: int) -> list[slice]:
  """Slices of a sequence whose sizes add up to about the same, and to no more than `most` unless one alone does."""
  left, found, start, size = sum(sizes), [], 0, 0
  for i, more in enumerate(sizes):
    wanted = left / max(-(-left // most), 1)  # anew for every slice, so that no small one is left for the end
    if i > start and (size + more / 2 > wanted or size + more > most):
      found.append(slice(start, i))
      left, start, size = left - size, i, 0
    size += more
  return found + [slice(start, len(sizes))] * (start < len(sizes))


def packing(lengths: Sequence[int], row: int) -> list[list[int]]:
  """Which examples share a row of `row` tokens: best-fit-decreasing; a longer one has rows of its own and is listed once.

  Rows are kept in buckets by the room that is left, so that a million examples take seconds.
  """
  rows, room = [], [[] for _ in range(row + 1)]  # room[r]: rows with r tokens left
  used = np.zeros(row + 1, bool)
  for i in np.argsort(-np.asarray(lengths), kind="stable"):
    length = int(lengths[i])
    if length >= row:
      rows.append([int(i)])
      continue
    free = length + int(np.argmax(used[length:]))
    if used[free]:
      at = room[free].pop()
      used[free] = bool(room[free])
    else:
      at, free = len(rows), row
      rows.append([])
    rows[at].append(int(i))
    room[free - length].append(at)
    used[free - length] = True
  return rows
