"""What elements are called, and which of them a name picks out without doubt."""

from typing import Sequence

from bluelm_jax.data.tasks import screens

_LONGEST = {"en": 48, "zh": 24}
_SAME = 0.8  # intersection over union from which two boxes are one place: a heading and the link that is all of it


def called(element: dict) -> str:
  return element.get("label") or element["text"]


def quoted(text: str, role: str, language: str) -> str:
  """“Save” button, “保存”按钮."""
  return f"“{text}”{screens.ROLE_NAMES[role][1]}" if language == "zh" else f"“{text}” {screens.ROLE_NAMES[role][0]}"


def describe(element: dict, language: str) -> str:
  """Role, colour, state and name: on switch “Wi-Fi”, 打开的开关“Wi-Fi”."""
  said, name = screens.name(element, language), called(element)
  return said + (f"“{name}”" if language == "zh" else f" “{name}”") if name else said


def overlap(a: Sequence[float], b: Sequence[float]) -> float:
  """Intersection over union of two boxes."""
  wide, high = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
  both = max(wide, 0) * max(high, 0)
  return both / (area(a) + area(b) - both) if both else 0.0


def area(box: Sequence[float]) -> float:
  return (box[2] - box[0]) * (box[3] - box[1])


def same_place(a: dict, b: dict) -> bool:
  return overlap(a["box"], b["box"]) >= _SAME


def fits(text: str, language: str) -> bool:
  return 0 < len(text) <= _LONGEST[language]


def names(elements: Sequence[dict], language: str) -> dict[int, str]:
  """Number of an element -> its name, for those whose name no other element may be meant by.

  A name is a quoted word and the role. Plain text of the same words is no rival (a field's label stands beside it), nor is what lies at
  the same place. An element without words is named by role, colour and state, as tasks/screens.py does.
  """
  words = [{w.casefold() for w in (e["text"], e.get("label", "")) if w} for e in elements]
  found = {}
  for i, element in enumerate(elements):
    name = called(element)
    if fits(name, language) and "\n" not in name:
      rivals = [o for j, o in enumerate(elements) if j != i and name.casefold() in words[j] and not same_place(o, element)]
      if all(o["role"] == "text" and element["role"] != "text" for o in rivals):
        found[i] = quoted(name, element["role"], language)
  numbers = {id(e): i for i, e in enumerate(elements)}
  found |= {numbers[id(e)]: label for label, e in screens.targets(elements, language) if not called(e)}
  return found
