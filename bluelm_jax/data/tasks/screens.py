"""Questions about app screens, made from their elements.

Coordinates are normalised to 0-1000, rounded to the middles of 25 steps (here; larger models tell more apart) and written with
three digits: "(500,060)" is a point (x,y), "(020,060)(980,100)" a box (left,top)(right,bottom).
"""

import math
import re

import cv2
import numpy as np

from bluelm_jax.data.tasks.reasoning import HINTS

STEPS = 25
COORDINATES = tuple(range(500 // STEPS, 1000, 1000 // STEPS))
ROLE_NAMES = {
    "button": ("button", "按钮"), "switch": ("switch", "开关"), "checkbox": ("checkbox", "复选框"), "radio": ("radio button", "单选框"),
    "input": ("input", "输入框"), "search": ("search bar", "搜索框"), "tab": ("tab", "标签"), "back": ("back arrow", "返回"),
    "icon": ("icon", "图标"), "item": ("list item", "列表项"), "slider": ("slider", "滑块"), "stepper": ("stepper", "步进器"),
    "avatar": ("avatar", "头像"), "image": ("image", "图片"), "title": ("title", "标题"), "badge": ("badge", "徽标"),
    "fab": ("floating button", "悬浮按钮"), "rate": ("rating", "评分"), "progress": ("progress bar", "进度条"), "price": ("price", "价格"),
    "text": ("text", "文字"), "link": ("link", "链接"), "select": ("dropdown", "下拉框"),
}
COLOR_NAMES = {
    "red": "红色", "orange": "橙色", "yellow": "黄色", "green": "绿色", "blue": "蓝色", "purple": "紫色", "black": "黑色",
    "white": "白色", "gray": "灰色", "grey": "灰色", "pink": "粉色", "cyan": "青色", "teal": "青色", "brown": "棕色",
}
PHRASES = {
    "point": {"en": "Point to the {}.", "zh": "指出{}。"},
    "box": {"en": "Box the {}.", "zh": "框出{}。"},
    "refer": {"en": "What is at {}?", "zh": "{}是什么?"},
    "list": {"en": "List the elements.", "zh": "列出元素。"},
    "caption": {"en": "Describe the screen.", "zh": "描述这个界面。"},
    "read": {"en": "Read the text at {}.", "zh": "读出{}的文字。"},
    "color": {"en": "Is the {} {} or {}?", "zh": "{}是{}还是{}?"},
}
WEB_ROLES = ("link", "select")  # the shipped screens have none
PALETTE = ("red", "orange", "green", "blue", "teal", "purple", "pink", "black")  # of the shipped screens' elements
_WALK = 3  # elements that a chain names at most
STATE_NAMES = {"on": ("on", "打开的"), "off": ("off", "关闭的"), "checked": ("checked", "选中的"), "selected": ("selected", "选中的")}


def is_screen(meta: dict) -> bool:
  """Whether a Sample's meta holds what questions are made from."""
  elements = meta.get("elements")
  return (
      meta.get("language") in ("en", "zh") and isinstance(meta.get("caption"), str) and isinstance(elements, list) and bool(elements)
      and all(isinstance(e, dict) and _is_element(e) for e in elements))


def _is_element(e: dict) -> bool:
  box, words = e.get("box"), [e.get(k, "") for k in ("role", "text", "color", "state")]
  whole = isinstance(box, list) and len(box) == 4 and all(isinstance(v, (int, float)) and math.isfinite(v) for v in box)
  return whole and all(isinstance(w, str) for w in words) and e.get("role") in ROLE_NAMES and "text" in e


def name(element: dict, language: str, with_color: bool = True) -> str:
  """ "red button", "红色按钮", "on switch": the role comes last."""
  zh = language == "zh"
  text = ROLE_NAMES[element["role"]][zh]
  color, state = element.get("color") if with_color else "", element.get("state")
  if color in COLOR_NAMES:
    text = COLOR_NAMES[color] + text if zh else f"{color} {text}"
  if state in STATE_NAMES:
    text = STATE_NAMES[state][1] + text if zh else f"{state} {text}"
  return text


def point(box, steps: int = STEPS) -> str:
  return f"({_coordinate((box[0] + box[2]) / 2, steps)},{_coordinate((box[1] + box[3]) / 2, steps)})"


def box_text(box, steps: int = STEPS) -> str:
  l, t, r, b = (_coordinate(v, steps) for v in box)
  return f"({l},{t})({r},{b})"


def _coordinate(value: float, steps: int) -> str:
  """The middle of the step that a share lies in, in thousandths."""
  return f"{(2 * min(max(int(value * steps), 0), steps - 1) + 1) * 500 // steps:03d}"


def parse_point(reply: str) -> tuple[float, float] | None:
  """The point of a reply in 0..1: "(x,y)", or the centre of "(left,top)(right,bottom)"; None if it has neither."""
  found = parse_places(reply)
  return tuple(np.mean(found, axis=0)) if found else None


def parse_places(reply: str) -> list[tuple[float, float]]:
  """A reply's point, or its box's two corners, in 0..1; [] if it has neither."""
  return [(int(x) / 1000, int(y) / 1000) for x, y in re.findall(r"\((\d{1,4}),(\d{1,4})\)", reply)[:2]]


def targets(elements: list[dict], language: str) -> list[tuple[str, dict]]:
  """(name, element) of the elements that their role, colour and state name without doubt."""
  names = [name(e, language) for e in elements]
  return [(n, e) for n, e in zip(names, elements) if names.count(n) == 1 and e["role"] not in ("text", "item")]


def _ask(kind, meta, *values) -> str:
  return PHRASES[kind][meta["language"]].format(*values)


def _said(label: str, language: str) -> str:
  """A label as answers write it: English with a space before, so that its tokens are those inside a sentence."""
  return label if language == "zh" else " " + label


def _ground(elements, meta, rng):
  named = targets(elements, meta["language"])
  if not named:
    return None
  label, element = named[rng.integers(len(named))]
  if rng.random() < 0.75:
    return _ask("point", meta, label), None, _said(label, meta["language"]) + point(element["box"])
  return _ask("box", meta, label), None, _said(label, meta["language"]) + box_text(element["box"])


def _refer(elements, meta, rng):
  element = elements[rng.integers(len(elements))]
  where = point(element["box"])
  return _ask("refer", meta, where), None, _said(name(element, meta["language"]), meta["language"])


def _list(elements, meta, rng):
  order = [elements[i] for i in rng.permutation(len(elements)) if elements[i]["role"] not in ("text", "item")][:12]
  text = ";".join(_said(name(e, meta["language"]), meta["language"]) + point(e["box"]) for e in order)
  return _ask("list", meta), None, text


def _caption(elements, meta, rng):
  return _ask("caption", meta), None, meta["caption"]


def _read(elements, meta, rng):
  with_text = [e for e in elements if 0 < len(e["text"]) <= 12]
  if not with_text:
    return None
  element = with_text[rng.integers(len(with_text))]
  where = point(element["box"])
  return _ask("read", meta, where), None, element["text"]


def color(elements, meta, rng):
  """Is the top button red or blue? The chain walks from the asked one to the next of that role.

  Of several, the two colours are those of the asked one and of another, so that their order decides; without the
  screen either is as likely.
  """
  groups = {}
  for element in elements:
    groups.setdefault(element["role"], []).append(element)
  groups = [g for g in groups.values() if len(g) <= 4 and all(e.get("color") in PALETTE for e in g)]
  if not groups:
    return None
  group = sorted(groups[rng.integers(len(groups))], key=lambda e: e["box"][1] + e["box"][3])
  language = meta["language"]
  zh = language == "zh"
  subject, asked = ROLE_NAMES[group[0]["role"]][zh], group[0]
  if len(group) > 1:
    end = ("top", "bottom")[rng.integers(2)]
    asked, neighbour = (group[0], group[1]) if end == "top" else (group[-1], group[-2])
    if abs(sum(asked["box"][1::2]) - sum(neighbour["box"][1::2])) < 0.1:  # side by side
      return None
    subject = {"top": "最上面的", "bottom": "最下面的"}[end] + subject if zh else f"{end} {subject}"
  others = [e["color"] for e in group if e["color"] != asked["color"]] or [c for c in PALETTE if c != asked["color"]]
  pair = [asked["color"], others[rng.integers(len(others))]]
  words = [COLOR_NAMES[pair[i]] if zh else pair[i] for i in rng.permutation(2)]
  met = (group if asked is group[0] else group[::-1])[:_WALK]
  chains = {
      "long": ";".join(_said(name(e, language), language) + point(e["box"]) for e in met),
      "short": _said(name(asked, language), language)}
  answer = _said(COLOR_NAMES[pair[0]] if zh else pair[0], language)
  return PHRASES["color"][language].format(subject, *words), chains, answer


def hinted(question: str, style: str, language: str) -> str:
  """The question after its hint, so that the two colours stand right before the thought."""
  return f"{HINTS[style][language]} {question}"


_TASKS = {"ground": _ground, "refer": _refer, "list": _list, "caption": _caption, "read": _read, "color": color}
TASKS = tuple(_TASKS)
_POINTING = ("ground", "refer", "list", "color")  # they tell where an element is


def conversation(image, elements, meta, tasks: dict[str, float], turns: int, rng) -> list[dict]:
  """A user shows the screen and asks up to `turns` different questions; a reasoning question thinks half of the time."""
  names, weights = list(tasks), np.array(list(tasks.values()), float)
  messages, seen, language = [], set(), meta["language"]
  labels = {name(e, language) for e in elements}
  for _ in range(4 * turns):  # a screen may have fewer things to ask about
    kind = names[rng.choice(len(names), p=weights / weights.sum())]
    made = _TASKS[kind](elements, meta, rng)
    if made is None:
      kind, made = "caption", _caption(elements, meta, rng)
    text, chains, answer = made
    said = text + answer + (chains["long"] if chains else "")
    about = {label for label in labels if label in said} if kind in _POINTING else {text}
    if about & seen:  # it could be answered by copying from an earlier turn
      continue
    seen |= about
    reply = {"role": "assistant", "content": answer}
    style = ("long", "short", "none")[rng.integers(3)] if chains else "none"
    if style != "none":
      text = hinted(text, style, language)
      reply["reasoning_content"] = chains[style]
    content = [{"type": "image", "image": image}, {"type": "text", "text": text}] if not messages else text
    messages += [{"role": "user", "content": content}, reply]
    if len(messages) == 2 * turns:
      break
  return messages


def augment(image_HWC: np.ndarray, elements: list[dict], rng) -> tuple[np.ndarray, list[dict]]:
  """Zooms and shifts a screen a little (a crop of the same size), and moves the boxes with it."""
  height, width = image_HWC.shape[:2]
  zoom = rng.uniform(0.8, 1.15)
  dx, dy = rng.uniform(-0.1, 0.1, 2) + (1 - zoom) / 2
  matrix = np.array([[zoom, 0, dx * width], [0, zoom, dy * height]])
  border = tuple(int(v) for v in image_HWC[-1, -1])
  moved = cv2.warpAffine(image_HWC, matrix, (width, height), flags=cv2.INTER_AREA, borderValue=border)
  kept = []
  for element in elements:
    l, t, r, b = (np.array(element["box"]) * zoom + [dx, dy, dx, dy]).tolist()
    if 0 <= (l + r) / 2 < 1 and 0 <= (t + b) / 2 < 1 and r - l < 1.3:
      kept.append({**element, "box": [max(l, 0.0), max(t, 0.0), min(r, 1.0), min(b, 1.0)]})
  return (moved, kept) if kept else (image_HWC, elements)


NOTHING = " nothing"


def cell_words(cells: np.ndarray, elements: list[dict], language: str) -> list[tuple[str, str, str, str]]:
  """(role, colour or state, x, y) of what each cell [n, 4] shows; (NOTHING, "", "", "") without an element.

  A cell shows the element of which it holds the largest part (a quarter at least), or else the one over
  its centre; x and y are the two halves of that element's point. Words are those `name` uses.
  """
  boxes = np.array([e["box"] for e in elements])
  overlap = np.minimum(cells[:, None, 2:], boxes[None, :, 2:]) - np.maximum(cells[:, None, :2], boxes[None, :, :2])
  part = np.clip(overlap, 0, None).prod(-1) / np.maximum((boxes[:, 2:] - boxes[:, :2]).prod(-1), 1e-6)
  centre = (cells[:, :2] + cells[:, 2:]) / 2
  over = ((centre[:, None] >= boxes[None, :, :2]) & (centre[:, None] < boxes[None, :, 2:])).all(-1)
  score = np.where(part >= 0.25, 1 + part, 0) + over * (0.5 + 0.1 * part)
  words = []
  for i, best in enumerate(score.argmax(1)):
    if score[i, best] == 0:
      words.append((NOTHING, "", "", ""))
      continue
    element = elements[best]
    where = point(element["box"])
    role = ROLE_NAMES[element["role"]]
    trait = element["color"] or element["state"]
    if language == "zh":
      trait = COLOR_NAMES.get(trait, STATE_NAMES.get(trait, ("", ""))[1])
      words.append((role[1], trait, where[:5], where[5:]))
    else:
      words.append((" " + role[0], trait and " " + trait, where[:5], where[5:]))
  return words
