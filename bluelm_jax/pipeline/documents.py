"""Documents of a wanted size, and the plan of how examples fill rows."""

from typing import Iterable, Iterator, Sequence

import numpy as np


def split(text: str, max_bytes: int) -> list[str]:
  """A text cut at ends of paragraphs into pieces of about equal size, none over `max_bytes` UTF-8 bytes unless a paragraph is."""
  total = len(text.encode())
  if total <= max_bytes:
    return [text]
  wanted = total / -(-total // max_bytes)
  pieces, current, size = [], [], 0
  for paragraph in text.split("\n"):
    more = len(paragraph.encode()) + 1
    if current and (size + more / 2 > wanted or size + more > max_bytes):
      pieces.append("\n".join(current).strip())
      current, size = [], 0
    current.append(paragraph)
    size += more
  pieces.append("\n".join(current).strip())
  return [piece for piece in pieces if piece]


def join(found: Iterable[tuple[str, str]], min_bytes: int, full_bytes: int, max_bytes: int) -> Iterator[tuple[list[str], str]]:
  """(page, paragraph) pairs to (pages, document); a page too short for a document goes on with the next."""
  pages, kept, size = [], [], 0
  for page, text in found:
    more = len(text.encode()) + 1
    if size >= min_bytes and (page not in pages or size >= full_bytes or size + more > max_bytes):
      yield pages, "\n".join(kept)
      pages, kept, size = [], [], 0
    if page not in pages:
      pages.append(page)
    kept.append(text)
    size += more
  if size >= min_bytes:
    yield pages, "\n".join(kept)


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
