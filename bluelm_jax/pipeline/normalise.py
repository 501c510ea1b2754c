"""One form of every text: Unicode NFC, no control characters, plain white space, mojibake undone.

NFC and not NFKC: the latter turns full-width Chinese punctuation into ASCII.
"""

import re
import unicodedata

import ftfy

# Tab and line feed stay; soft hyphens, zero-width spaces, byte-order marks and directional marks go.
_CONTROL = re.compile("[\x00-\x08\x0e-\x1f\x7f\xad\u200b\u200e\u200f\u202a-\u202e\u2060\ufeff\ufffe\uffff]")
_CONTROL_1 = re.compile("[\x80-\x84\x86-\x9f]")  # may be bytes of mojibake
_BREAK = re.compile("\r\n?|[\x0b\x0c\x85\u2028\u2029]")
_ODD = "\t\xa0\u1680\u2000-\u200a\u202f\u205f\u3000"
_SPACE = re.compile(f" [ {_ODD}]+|[{_ODD}][ {_ODD}]*")  # a lone space stays: most do
_WORK = ("  ", " \n", "\n ", "\n\n\n")  # of ASCII text, which mostly needs none
# UTF-8 read as Latin-1 or Windows-1252: a lead byte as a letter, followed by a continuation byte as a sign. ftfy looks closer.
_SUSPECT = re.compile("[\xc2\xc3\xe2-\xef][\x80-\xbf\u0152\u0153\u0160\u0161\u0178\u017d\u017e\u0192\u02c6\u02dc\u2013-\u203a\u20ac\u2122]")


_ASCII = str.maketrans({"\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"', "\u2013": "-", "\u2014": "-", "\u2026": "..."})


def ascii_signs(text: str) -> str:
  """The text with quotation marks, dashes and ellipses of ASCII; not for Chinese, whose quotation marks are these."""
  return text.translate(_ASCII)


def code(text: str) -> str:
  """Source code in its one form: line feeds, no byte-order mark, no white space at ends of lines; indentation stays."""
  lines = text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n").split("\n")
  return "\n".join(line.rstrip() for line in lines).strip("\n")


def normalise(text: str) -> str:
  """The text in its one form; normalise(normalise(x)) == normalise(x)."""
  text = _once(text)
  if text.isascii():
    return text
  while _SUSPECT.search(text) and (again := _once(text)) != text:  # mojibake of mojibake
    text = again
  return text


def _once(text: str) -> str:
  if text.isascii() and text.replace("\n", "").isprintable() and not any(work in text for work in _WORK):
    return text.strip()
  text = _CONTROL.sub("", text)
  if _SUSPECT.search(text):
    text = ftfy.fix_encoding(text)
  text = _CONTROL_1.sub("", _BREAK.sub("\n", text))
  if not unicodedata.is_normalized("NFC", text):
    text = unicodedata.normalize("NFC", text)
  text = _SPACE.sub(" ", text).replace(" \n", "\n").replace("\n ", "\n")
  return re.sub("\n{3,}", "\n\n", text).strip()
