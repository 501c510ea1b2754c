"""HTML documentation to paragraphs, with images in their places if wanted, and to images with their alternative texts."""

import html.parser
import re
from typing import Callable

from bluelm_jax.data.forms import MARK

_OBJECT = "\ufffc"  # Unicode's sign for an object in a text
_MIN_ALT = 8  # characters; shorter alternative texts name a file or an icon


class _Parser(html.parser.HTMLParser):
  """Texts of <p>, <li>, <dd> and headings; code, scripts, tables and navigation are left out.

  LibreOffice's help writes a platform's variant as <span hidden class="MAC"> beside a default; the default stays.
  """

  _BLOCKS = {"p", "li", "dd", "dt", "h1", "h2", "h3", "h4", "div"}
  _SKIP = {"script", "style", "pre", "nav", "table", "head", "footer", "button", "aside"}

  def __init__(self):
    super().__init__()
    self.next = ""  # the page that follows, as written
    self.places = []  # paths of the images that stand as _OBJECT in what was found
    self.found, self.images, self._current, self._skip = [], [], [], 0
    self._spans = []  # whether each open span is a variant

  def handle_starttag(self, tag, attrs):
    if tag == "span":
      names = [name for name, _ in attrs]
      self._spans.append("hidden" in names and "class" in names)
      self._skip += self._spans[-1]
    if tag in self._SKIP:
      self._skip += 1
    if tag in self._BLOCKS:
      self.flush()
    elif tag == "br":
      self.handle_data("\n")
    elif tag == "img":
      found = dict(attrs)
      self.images.append((found.get("src") or "", " ".join((found.get("alt") or "").split())))
      if not self._skip:
        self._current.append(_OBJECT)
        self.places.append(found.get("src") or "")
    elif tag == "link" and not self.next:
      found = dict(attrs)
      self.next = (found.get("href") or "") if found.get("rel") == "next" else ""

  def handle_endtag(self, tag):
    if tag == "span" and self._spans:
      self._skip = max(self._skip - self._spans.pop(), 0)
    if tag in self._SKIP:
      self._skip = max(self._skip - 1, 0)
    if tag in self._BLOCKS:
      self.flush()

  def handle_data(self, data):
    if not self._skip:
      self._current.append(data.replace(_OBJECT, ""))

  def flush(self):
    text = "".join(self._current)
    text = re.sub(r"(?<=[\u4e00-\u9fff])\s+(?=[\u4e00-\u9fff])", "", text)
    text = re.sub(r"\s+", " ", text).strip()
    self._current = []
    if text:
      self.found.append(text)


def _parse(page: str) -> _Parser:
  parser = _Parser()
  parser.feed(page)
  parser.close()
  parser.flush()
  return parser


def paragraphs(page: str) -> list[str]:
  """The paragraphs of a page, each on one line."""
  plain = (text.replace(_OBJECT, "") for text in _parse(page).found)
  return [" ".join(text.split()) for text in plain if text.strip()]


def following(page: str) -> str:
  """The page that a reader takes next, as its link of relation "next" is written; "" without one."""
  return _parse(page).next


def interleaved(page: str, load: Callable[[str], bytes | None]) -> tuple[str, list[bytes]]:
  """A page's paragraphs with marks where images stand, and the images: those that `load` finds for the paths as written."""
  parser, found = _parse(page), []
  data = iter([load(path) for path in parser.places])

  def mark(_):
    if (image := next(data)) is None:
      return ""
    found.append(image)
    return MARK

  texts = [re.sub(_OBJECT, mark, text.replace(MARK, MARK.strip("<>"))) for text in parser.found]
  return "\n".join(" ".join(text.split()) for text in texts if text.strip()), found


def images(page: str) -> list[tuple[str, str]]:
  """(path as written, alternative text) of the page's own images whose text says something."""
  return [(src, alt) for src, alt in _parse(page).images if len(alt) >= _MIN_ALT and src and not re.match(r"[a-z]+:|//", src)]
