"""Questions about a screen and their answers, from its elements; what cannot be answered for certain is not asked.

  ground    a name -> a point (tasks/screens.py says how points and boxes are written)
  box       a name -> a box
  refer     a point or box -> what is there
  read      a box -> its text
  read_all  the whole text by lines, of a screen whose pixels show no other
  caption   a sentence
  state     is it on, checked, expanded, usable; its value; which tab or radio button is selected
  act       a goal -> the next action (tasks/actions.py says how it is written)
"""

import dataclasses
import hashlib
from typing import Any, Callable, Mapping, NamedTuple, Sequence

import numpy as np

from bluelm_jax.data.sample import Sample
from bluelm_jax.data.tasks import actions
from bluelm_jax.data.tasks import screens
from bluelm_jax.pipeline.gui import naming
from bluelm_jax.pipeline.gui import phrases
from bluelm_jax.pipeline.gui.captions import caption

_READ, _READ_ALL = 300, 1500  # characters
_NO_TEXT = ("rate", "progress", "slider")  # their text tells a value
_MORE_TEXT = ("item", "input")  # of the UI kits: these show more than their element tells
_PRESSED = ("button", "icon", "fab", "back", "select")
_OPENED = ("link", "item", "tab")
_TYPED = ("input", "search")
_WRITTEN = (*_TYPED, "select", "stepper")  # their value can be read


class Asked(NamedTuple):
  """A question, its answer, and what it tells of: numbers of elements, or names of other things."""

  question: str
  answer: str
  about: frozenset[int | str]


class Screen(NamedTuple):
  """What questions are made of."""

  elements: Sequence[dict]
  meta: Mapping[str, Any]
  language: str
  steps: int
  rng: np.random.Generator
  names: Mapping[int, str]

  def one(self, options: Sequence) -> Any:
    return options[self.rng.integers(len(options))]

  def ask(self, table: Mapping[str, Sequence[str]], *values: str) -> str:
    return self.one(table[self.language]).format(*values)

  def point(self, i: int) -> str | None:
    """The written point of an element, if it lies in its box."""
    box = self.elements[i]["box"]
    written = screens.point(box, self.steps)
    x, y = screens.parse_point(written)
    return written if box[0] <= x <= box[2] and box[1] <= y <= box[3] else None

  def box(self, i: int) -> str | None:
    """The written box of an element, if rounding leaves most of it."""
    box = self.elements[i]["box"]
    written = screens.box_text(box, self.steps)
    corners = [int(v) / 1000 for v in written.replace(")(", ",").strip("()").split(",")]
    return written if naming.overlap(corners, box) >= 0.5 else None


def asked(sample: Sample, config: Mapping[str, Any]) -> Sample:
  """A screen as a conversation of up to `turns` questions; the sample as it is where none can be asked.

  Args:
    config: a data set's `gui`.
  """
  elements, meta = sample.meta.get("elements"), sample.meta
  if not elements or sample.messages:
    return sample
  rng = np.random.default_rng([config["seed"], *hashlib.sha256(sample.source.encode()).digest()])
  other = rng.random() < config["other_language"]
  language = {"zh": "en", "en": "zh"}.get(meta["language"], "en") if other else "zh" if meta["language"] == "zh" else "en"
  screen = Screen(elements, meta, language, config["steps"], rng, naming.names(elements, language))
  messages = []
  for question, answer, _ in conversation(screen, config["tasks"], config["turns"]):
    content = question if messages else [{"type": "image"}, {"type": "text", "text": question}]
    messages += [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]
  return dataclasses.replace(sample, messages=tuple(messages))


def conversation(screen: Screen, tasks: Mapping[str, float], turns: int) -> list[Asked]:
  """Questions of which no later one could be answered from an earlier one: none tells of an element twice."""
  kinds, weights = list(tasks), np.array(list(tasks.values()), float)
  found, told = [], set()
  for _ in range(4 * turns):  # a screen may have fewer things to ask about
    made = _TASKS[kinds[screen.rng.choice(len(kinds), p=weights / weights.sum())]](screen)
    if made is None or made.about & told or any(made.question == f.question for f in found):
      continue
    told |= made.about
    found.append(made)
    if len(found) == turns:
      break
  return found


def _ground(s: Screen) -> Asked | None:
  return _locate(s, "ground", s.point)


def _box(s: Screen) -> Asked | None:
  return _locate(s, "box", s.box)


def _locate(s: Screen, task: str, write: Callable[[int], str | None]) -> Asked | None:
  able = [(i, written) for i in s.names if s.elements[i]["role"] != "text" and (written := write(i))]
  if not able:
    return None
  i, written = s.one(able)
  return Asked(s.ask(phrases.ASK[task], s.names[i]), written, frozenset([i]))


def _refer(s: Screen) -> Asked | None:
  i = int(s.rng.integers(len(s.elements)))
  element, by_point = s.elements[i], s.rng.random() < 0.5
  where = s.point(i) if by_point else s.box(i)
  if not where or len(naming.called(element)) > _READ or any(naming.same_place(element, o) for j, o in enumerate(s.elements) if j != i):
    return None
  x, y = screens.parse_point(where)
  under = [o for o in s.elements if o["box"][0] <= x <= o["box"][2] and o["box"][1] <= y <= o["box"][3]]
  if by_point and min(under, key=lambda o: naming.area(o["box"])) is not element:
    return None
  return Asked(s.ask(phrases.ASK["refer"], where), naming.describe(element, s.language), frozenset([i]))


def _read(s: Screen) -> Asked | None:
  able = [i for i, e in enumerate(s.elements) if 0 < len(e["text"]) <= _READ and _legible(s, e)]
  if not able:
    return None
  i = s.one(able)
  where = s.box(i)
  return where and Asked(s.ask(phrases.ASK["read"], where), s.elements[i]["text"], frozenset([i]))


def _legible(s: Screen, element: dict) -> bool:
  """Whether the text of an element is all that its box shows."""
  if element.get("cut") or element["role"] in _NO_TEXT or "kit" in s.meta and element["role"] in _MORE_TEXT:
    return False
  if any(naming.overlap(element["box"], box) for box in s.meta.get("unread", ())):
    return False
  l, t, r, b = element["box"]
  for other in s.elements:
    x, y = (other["box"][0] + other["box"][2]) / 2, (other["box"][1] + other["box"][3]) / 2
    if other is not element and other["text"] and l <= x <= r and t <= y <= b and other["text"] not in element["text"]:
      return False
  return True


def _read_all(s: Screen) -> Asked | None:
  shown = [i for i, e in enumerate(s.elements) if e["text"]]
  if not s.meta.get("all_text") or any(s.elements[i].get("cut") or s.elements[i]["role"] in _NO_TEXT for i in shown):
    return None
  if "kit" in s.meta and any(s.elements[i]["role"] in _MORE_TEXT for i in shown):
    return None
  text = "\n".join(lines([s.elements[i] for i in shown]))
  return Asked(s.ask(phrases.ASK["read_all"]), text, frozenset(shown)) if 0 < len(text) <= _READ_ALL else None


def lines(elements: Sequence[dict]) -> list[str]:
  """The texts of elements by lines from top to bottom, those of a line from left to right; what another's text holds is not said twice."""
  outer = [
      e for e in elements
      if not any(o is not e and e["text"] in o["text"] and naming.area(o["box"]) > naming.area(e["box"]) and _within(e, o) for o in elements)]
  rows: list[list[dict]] = []
  for element in sorted(outer, key=lambda e: (e["box"][1] + e["box"][3], e["box"][0])):
    middle = (element["box"][1] + element["box"][3]) / 2
    if rows and rows[-1][0]["box"][1] <= middle <= rows[-1][0]["box"][3]:
      rows[-1].append(element)
    else:
      rows.append([element])
  return [" ".join(e["text"] for e in sorted(row, key=lambda e: e["box"][0])) for row in rows]


def _within(a: dict, b: dict) -> bool:
  x, y = (a["box"][0] + a["box"][2]) / 2, (a["box"][1] + a["box"][3]) / 2
  return b["box"][0] <= x <= b["box"][2] and b["box"][1] <= y <= b["box"][3]


def _caption(s: Screen) -> Asked | None:
  return Asked(s.ask(phrases.ASK["caption"]), caption(s.elements, s.meta["theme"], s.language), frozenset(["caption"]))


def state_of(element: dict) -> str:
  """The word of phrases.STATES that is true of an element, or ""."""
  state = element["state"]
  if element["role"] in ("checkbox", "radio"):
    return {"checked": "checked", "": "unchecked"}.get(state, "")
  return state if state in ("on", "off", "expanded", "collapsed") else ""


def _state(s: Screen) -> Asked | None:
  kinds: dict[str, list[Asked]] = {}
  some_disabled = any(e.get("disabled") for e in s.elements)
  for i, name in s.names.items():
    element = s.elements[i]
    named = {**element, "state": ""}
    if not naming.called(element) and screens.name(named, s.language) != name:
      continue  # the name tells the state
    for state in (state_of(element), ("disabled" if element.get("disabled") else "enabled") if some_disabled and element["role"] not in ("text", "title", "image") else ""):
      if state:
        turn = int(s.rng.integers(2))
        question = phrases.STATES[state][s.language][turn].format(name)
        kinds.setdefault(state, []).append(Asked(question, phrases.YES[s.language][turn], frozenset([i])))
    if element["role"] in _WRITTEN and "value" in element and len(element["value"]) <= _READ:
      kinds.setdefault("value", []).append(Asked(s.ask(phrases.VALUE, name), element["value"] or phrases.EMPTY[s.language], frozenset([i])))
  for role, chosen in (("tab", "selected"), ("radio", "checked")):
    group = [i for i, e in enumerate(s.elements) if e["role"] == role]
    picked = [i for i in group if s.elements[i]["state"] == chosen]
    if len(group) > 1 and len(picked) == 1 and naming.called(s.elements[picked[0]]):
      kinds[role] = [Asked(s.ask(phrases.WHICH[role]), naming.called(s.elements[picked[0]]), frozenset(picked))]
  return s.one(kinds[s.one(sorted(kinds))]) if kinds else None


def _act(s: Screen) -> Asked | None:
  if (s.meta.get("above") or s.meta.get("below")) and s.rng.random() < 0.25:
    return _scroll(s)
  for i in s.rng.permutation(list(s.names)).tolist():
    if not s.elements[i].get("disabled") and s.point(i) and (made := _goal(s, i, s.elements[i])):
      goal, action = made
      return Asked(s.ask(phrases.ASK["act"], goal), action, frozenset([i]))
  return None


def _goal(s: Screen, i: int, element: dict) -> tuple[str, str] | None:
  """(goal, action) for an element, by what it is for and how it stands."""
  name, role, click = s.names[i], element["role"], f"click{s.point(i)}"
  if role in _TYPED:
    entry = s.one(phrases.ENTRIES[s.language])
    return s.ask(phrases.GOALS["type"], name, entry), "done()" if element.get("value") == entry else actions.type_(s.point(i), entry)
  if role in ("switch", "checkbox", "radio"):
    state = state_of(element)
    pair = ("on", "off") if role == "switch" else ("checked", "unchecked") if role == "checkbox" else ("checked",)
    if state not in pair and role != "radio" or not naming.called(element):
      return None
    wanted = s.one(pair)
    return s.ask(phrases.GOALS[wanted], name), "done()" if wanted == state else click
  if role in _OPENED:
    return s.ask(phrases.GOALS["open"], name), "done()" if element["state"] == "selected" else click
  return (s.ask(phrases.GOALS["press"], name), click) if role in _PRESSED else None


def _scroll(s: Screen) -> Asked | None:
  """What is not here but further up or down, and nowhere else."""
  sides = {side: {(role, name) for role, name in s.meta.get(side, ())} for side in ("above", "below")}
  here = {w for e in s.elements for w in (e["text"], e.get("label", ""))}
  able = [
      (role, name, direction) for side, direction, other in (("above", "up", "below"), ("below", "down", "above")) for role, name in sorted(sides[side])
      if name not in here and naming.fits(name, s.language) and name not in {n for _, n in sides[other]}]
  if not able:
    return None
  role, name, direction = s.one(able)
  return Asked(s.ask(phrases.ASK["act"], s.ask(phrases.GOALS["find"], naming.quoted(name, role, s.language))), f"scroll({direction})", frozenset([name]))


_TASKS = {"ground": _ground, "box": _box, "refer": _refer, "read": _read, "read_all": _read_all, "caption": _caption, "state": _state, "act": _act}
TASKS = tuple(_TASKS)
