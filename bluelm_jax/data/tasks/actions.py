"""The next thing to do on a screen, as text:

  click(500,060)             touches a point, normalised to 0-1000 as tasks/screens.py has it
  type(500,060,"Anna")       touches a field and puts this text in the place of what it holds; the text is a JSON string
  scroll(down) scroll(up)    shows what lies below or above
  done()                     the goal is reached already
"""

import json
import re
from typing import NamedTuple

_FORM = re.compile(r'\s*(?:click\((\d{1,3}),(\d{1,3})\)|type\((\d{1,3}),(\d{1,3}),("(?:[^"\\]|\\.)*")\)|scroll\((down|up)\)|(done)\(\))\s*')


class Action(NamedTuple):
  """`kind` is click, type, scroll or done; `at` in 0..1 for the first two; `text` what is typed, or the direction."""

  kind: str
  at: tuple[float, float] | None = None
  text: str = ""


def type_(point: str, text: str) -> str:
  """The action that types into the field at a written point, "(500,060)"."""
  return f"type{point[:-1]},{json.dumps(text, ensure_ascii=False)})"


def parse(reply: str) -> Action | None:
  """The action that a reply is; None if it is none, or more than one."""
  found = _FORM.fullmatch(reply)
  if not found:
    return None
  x, y, at_x, at_y, text, direction, done = found.groups()
  if x:
    return Action("click", (int(x) / 1000, int(y) / 1000))
  if text:
    try:
      return Action("type", (int(at_x) / 1000, int(at_y) / 1000), json.loads(text))
    except ValueError:
      return None
  return Action("done") if done else Action("scroll", None, direction)
