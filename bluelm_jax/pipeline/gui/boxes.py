"""Are boxes where the browser says? The text of some elements is drawn alone: pixels that change must lie in their boxes."""

import hashlib
from typing import Sequence

import cv2
import numpy as np

from bluelm_jax.data.sample import Sample
from bluelm_jax.pipeline.gui import frames

STILL = dict(caret="hide", animations="disabled")  # for page.screenshot
SLACK = 2  # CSS pixels
_CHANGE = 24  # of 255
_OUTSIDE = 0.02  # share of the changed pixels that may lie outside


async def check(page, png: bytes, view: frames.View, ratio: float) -> dict:
  """What Sample.meta says of a page whose view and picture have just been taken.

  Returns:
    text_boxes: [elements right, elements checked], of those that show text.
    all_text: whether the picture shows text in their boxes alone, as far as it was read.
  """
  numbers = await view.with_text()
  await view.show([])
  bare = _decode(await page.screenshot(**STILL))
  slack, right = round(SLACK * ratio), 0
  boxes = {i: _pixels(view.elements[i]["box"], bare.shape) for i in numbers}
  for group in groups(boxes, 2 * slack):
    await view.show(group)
    right += inside(bare, _decode(await page.screenshot(**STILL)), [boxes[i] for i in group], slack)
  await view.show(None)
  whole = inside(bare, _decode(png), list(boxes.values()), slack)
  return {"text_boxes": [right, len(numbers)], "all_text": right == whole == len(numbers) and not view.unread}


def _decode(png: bytes) -> np.ndarray:
  return cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR)


def chosen(name: str, share: float) -> bool:
  """Whether a screen of this name is among the share that is checked."""
  return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big") < share * 2**32


def failed(sample: Sample) -> bool:
  """Whether a screen has been checked and holds an element whose text is not in its box, or not to be seen."""
  right, checked = sample.meta.get("text_boxes", (0, 0))
  return right < checked


def _pixels(box, shape) -> tuple[int, int, int, int]:
  """A box in shares of an image -> left, top, right, bottom in pixels."""
  return tuple(round(v * s) for v, s in zip(box, (shape[1], shape[0]) * 2))


def groups(boxes: dict[int, tuple], apart: int) -> list[list[int]]:
  """The boxes, few at a time: no two of a group are nearer than `apart` pixels."""
  found: list[list[int]] = []
  for i, (l, t, r, b) in boxes.items():
    for group in found:
      if all(l > boxes[j][2] + apart or r < boxes[j][0] - apart or t > boxes[j][3] + apart or b < boxes[j][1] - apart for j in group):
        group.append(i)
        break
    else:
      found.append([i])
  return found


def inside(bare: np.ndarray, shown: np.ndarray, boxes: Sequence[tuple], slack: int) -> int:
  """How many boxes hold text: pixels that differ between two uint8 [H, W, 3]. None does when 2 % of these lie outside all boxes."""
  changed = np.abs(shown.astype(np.int16) - bare).max(-1) > _CHANGE
  within, good = np.zeros_like(changed), 0
  for l, t, r, b in boxes:
    area = (slice(max(t - slack, 0), b + slack + 1), slice(max(l - slack, 0), r + slack + 1))
    good += bool(changed[area].any())
    within[area] = True
  return good if (changed & ~within).sum() <= _OUTSIDE * changed.sum() else 0
