"""One sentence about a screen, from its elements."""

import collections
from typing import Sequence

from bluelm_jax.data.tasks import screens

_COUNTED = ("button", "switch", "input", "image", "icon", "item", "tab", "link")


def caption(elements: Sequence[dict], theme: str, language: str) -> str:
  counts = collections.Counter(e["role"] for e in elements)
  colors = [e["color"] for e in elements if e["role"] == "button" and e["color"]]
  titles = [e["text"] for e in elements if e["role"] == "title"]
  parts = [(role, counts[role]) for role in _COUNTED if counts[role]][:3]
  if language == "zh":
    told = "、".join(f"{n}个{screens.ROLE_NAMES[role][1]}" for role, n in parts)
    return f"{'深色' if theme == 'dark' else '浅色'}界面" + (f"“{titles[0]}”" if titles else "") + (f"，有{told}" if parts else "") + "。"
  told = ", ".join(f"{n} {role}{'s' if n > 1 else ''}" for role, n in parts)
  color = f"; the first button is {colors[0]}" if colors else ""
  return f"A {theme} screen" + (f" titled {titles[0]}" if titles else "") + (f" with {told}" if parts else "") + color + "."
