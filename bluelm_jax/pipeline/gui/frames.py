"""What a page and the frames in it show, as one picture with its elements."""

import dataclasses
from typing import Sequence


@dataclasses.dataclass
class View:
  """A page as it stands.

  Attributes:
    elements: of the page, then of its frames; boxes are shares of the picture.
    places: the frame of each element, and its number there.
    frames: those that were read; the first is the page's own.
    unread: boxes of the others: drawn smaller, larger or turned, or gone wrong. What they show is unknown.
  """

  elements: list[dict]
  places: list[tuple]
  frames: list
  unread: list[list[float]]

  async def with_text(self) -> list[int]:
    """Numbers of the elements that show text."""
    numbers = {frame: set(await frame.evaluate("() => window.bluelm.withText()")) for frame in self.frames}
    return [i for i, (frame, number) in enumerate(self.places) if number in numbers[frame]]

  async def show(self, numbers: Sequence[int] | None) -> None:
    """Hides all text but that of these elements; None gives the page back."""
    for frame in self.frames:
      own = None if numbers is None else [self.places[i][1] for i in numbers if self.places[i][0] == frame]
      await frame.evaluate("(numbers) => window.bluelm.show(numbers)", own)


def alone(page, elements: list[dict]) -> View:
  """A page without frames."""
  return View(elements, [(page.main_frame, i) for i in range(len(elements))], [page.main_frame], [])


async def look(page) -> tuple[dict, View]:
  """What page/elements.js says of the page itself, and the view of all."""
  seen = await page.evaluate("() => window.bluelm.elements()")
  view = alone(page, seen["elements"])
  await _within(page.main_frame, None, [], view)
  return seen, view


async def _within(parent, at: dict | None, over: list[tuple], view: View) -> None:
  """Adds what the frames in a document show; `over` are the frames around them, each (its parent, it there, where the parent is)."""
  from playwright import async_api  # an extra's

  for frame in parent.child_frames:
    try:
      element = await frame.frame_element()
      place = await parent.evaluate("([el, at]) => window.bluelm.frame(el, at)", [element, at])
    except async_api.Error:  # it has been taken out
      continue
    if place is None:
      continue
    around = [*over, (parent, element, at)]
    try:
      seen = await frame.evaluate("(at) => window.bluelm.elements(at)", place)
    except async_api.Error:
      seen = None
    if seen is None:
      view.unread.append(place["box"])
      continue
    kept = range(len(seen["elements"]))
    for outer, element, where in around:
      boxes = [seen["elements"][i]["box"] for i in kept]
      seen_there = await outer.evaluate("([el, at, boxes]) => window.bluelm.open(el, at, boxes)", [element, where, boxes])
      kept = [i for i, is_open in zip(kept, seen_there) if is_open]
    view.frames.append(frame)
    view.elements += [seen["elements"][i] for i in kept]
    view.places += [(frame, i) for i in kept]
    await _within(frame, place, around, view)
