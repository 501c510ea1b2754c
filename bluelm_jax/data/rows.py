"""Which examples share a row, from their sizes alone."""

import functools
import math
from typing import Sequence

_RESOLUTION = 2048  # longer rows are counted in units of several tokens
_IMAGES = 8  # examples with images from which a row's are chosen, for each that it should have; they make the sums many
_TILE_WEIGHT = 0.05  # to miss all tiles that a row should have is as bad as this share of it in padding


def fill_row(n_E: Sequence[int], t_E: Sequence[int], length: int, slots: int, aim: float) -> list[int]:
  """The examples that fill a row best: the first that fits, and those that bring its tokens closest to `length`.

  Args:
    n_E: tokens of each example, by precedence: of sums equally good one of earlier examples is taken.
    t_E: tiles of each.
    length: tokens of the row.
    slots: tiles that are left for it.
    aim: tiles that it should have, so that all rows have alike many.

  Returns:
    indices in rising order; empty if no example fits.
  """
  chosen = more = _subset(range(len(n_E)), n_E, t_E, length, slots, aim)
  while more:  # what counting in units has left empty: text for it, counted in smaller ones
    length -= sum(n_E[i] for i in more)
    taken = set(chosen)
    more = _subset([i for i, n in enumerate(n_E) if n <= length and not t_E[i] and i not in taken], n_E, t_E, length, 0, 0.0)
    chosen = chosen + more
  return sorted(chosen)


def _subset(of: Sequence[int], n_E, t_E, length: int, slots: int, aim: float) -> list[int]:
  """Minimum bin slack with one item fixed (Gupta and Ho, Production Planning & Control 10(6), 1999), over two sizes.

  Exact but for the resolution. The sums in reach are one integer: bit t * stride + n stands for n units of tokens and t
  units of tiles.
  """
  first = next((i for i in of if n_E[i] <= length and t_E[i] <= slots), None)
  if first is None:
    return []
  slots = min(slots, max(math.ceil(2 * aim), t_E[first]))
  tiles = math.gcd(*t_E) or 1
  unit = -(-length // _RESOLUTION)
  room, most = length // unit, slots // tiles
  stride = 2 * room + 1  # a sum of two is masked before it can reach the next tile's bits
  if -(-n_E[first] // unit) > room:  # it is the row
    return [first]
  size_E = [t // tiles * stride - (-n // unit) for n, t in zip(n_E, t_E)]
  goal = min(round(aim / tiles), most) * stride + room
  mask = _mask(room, stride, most)
  reach, items, before = 1 << size_E[first], [], []
  room_left, slots_left = length - n_E[first], slots - t_E[first]
  fitting = [i for i in of if n_E[i] <= room_left and i != first]
  images = [i for i in fitting if 0 < t_E[i] <= slots_left]
  images = images[: max(_IMAGES, round(_IMAGES * aim * len(images) / max(sum(t_E[i] for i in images), 1)))]
  for i in [i for i in fitting if not t_E[i]] + images:  # text first: until the first image the integer is short
    if reach >> goal & 1:
      break
    more = (reach | reach << size_E[i]) & mask
    if more != reach:
      items.append(i)
      before.append(reach)
      reach = more
  cost = lambda n, t: (room - n) / room + _TILE_WEIGHT * abs(t * tiles - aim) / max(aim, 1.0)
  longest = (((reach >> t * stride) & (1 << room + 1) - 1).bit_length() - 1 for t in range(most + 1))
  _, t, n = min((cost(n, t), t, n) for t, n in enumerate(longest) if n >= 0)
  at, chosen = t * stride + n, [first]
  for i, without in zip(reversed(items), reversed(before)):
    if not without >> at & 1:
      chosen.append(i)
      at -= size_E[i]
  return chosen


@functools.lru_cache(maxsize=1024)
def _mask(room: int, stride: int, most: int) -> int:
  """The bits of all sums that fit."""
  return sum(((1 << room + 1) - 1) << t * stride for t in range(most + 1))
