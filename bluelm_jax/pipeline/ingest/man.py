"""Manual pages in roff, with the macros man(7) or mdoc(7), to paragraphs.

Only what carries prose is read: code (.nf, .EX), tables and drawings are left out.
"""

import re
import shlex

_BREAKS = {"SH", "SS", "Sh", "Ss", "PP", "P", "LP", "Pp", "TP", "IP", "HP", "RS", "RE", "It", "br", "sp"}
_TEXT = {"SH", "SS", "Sh", "Ss", "B", "I", "SM", "SB", "Nm", "Nd", "Ar", "Pa", "Em", "Sy", "Dq", "Sq", "Li", "Xr", "Cm", "Va", "Fn"}
_JOINED = {"BR", "RB", "BI", "IB", "IR", "RI"}  # fonts take turns, without spaces between them
_SKIP = {"nf": "fi", "EX": "EE", "TS": "TE", "PS": "PE", "EQ": "EN", "Bd": "Ed", "de": ".", "ig": "."}
_NAMED = {"-": "-", "e": "\\", "&": "", "|": "", "^": "", "/": "", ",": "", ":": "", "%": "", "~": " ", " ": " ", "0": " ", "'": "'", "`": "`", "c": "", "t": "\t", ".": "."}
_LONG = {"aq": "'", "dq": '"', "lq": "“", "rq": "”", "oq": "‘", "cq": "’", "em": "—", "en": "–", "bu": "•", "co": "©", "rg": "®", "ha": "^", "ti": "~", "rs": "\\"}
_ESCAPE = re.compile(r"\\(?:f(?:\[[^\]]*\]|\(..|.)|s[+-]?\d+|\*?\(([^ ]{2})|\*?\[([^\]]*)\]|[mFY]\[[^\]]*\]|[hvwlLNo]'[^']*'|(.))")


def _plain(text: str) -> str:
  text = re.sub(r'\\".*', "", text)

  def one(found):
    name = found[1] or found[2]
    if name:
      return _LONG.get(name, "")
    return _NAMED.get(found[3], "") if found[3] else ""

  return _ESCAPE.sub(one, text)


def _arguments(text: str) -> list[str]:
  try:
    lexer = shlex.shlex(text, posix=True)
    lexer.whitespace_split, lexer.quotes, lexer.escape, lexer.commenters = True, '"', "", ""
    return list(lexer)
  except ValueError:  # an open quote
    return text.split()


def paragraphs(page: str) -> list[str]:
  """The paragraphs of a page, each on one line; headings are paragraphs of their own."""
  found, current, until = [], [], ""

  def flush():
    text = re.sub(r"(?<=[\u3000-\u9fff\uff00-\uffef]) (?=[\u3000-\u9fff\uff00-\uffef])", "", " ".join(" ".join(current).split()))
    current.clear()
    if text:
      found.append(text)

  for line in page.splitlines():
    request = re.match(r"[.']\s*([A-Za-z]+|\.|\\\")?\s*(.*)", line)
    name = request[1] or "" if request else ""
    if until:
      until = "" if name == until else until
    elif not request:
      if not line.strip():
        flush()
      current.append(_plain(line))
    elif name in _SKIP:
      flush()
      until = _SKIP[name]
    else:
      if name in _BREAKS:
        flush()
      if name in _TEXT:
        current.append(_plain(" ".join(_arguments(request[2]))))
      elif name in _JOINED:
        current.append(_plain("".join(_arguments(request[2]))))
      elif name == "Fl":
        current.append("-" + _plain(request[2]))
      if name in ("SH", "SS", "Sh", "Ss"):
        flush()
  flush()
  return found
