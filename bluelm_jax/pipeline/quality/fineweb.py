"""FineWeb's own rules (Penedo et al. 2024, arXiv 2406.17557, section 3.6) and their Chinese counterparts.

A Chinese line says about as much in a third of the characters, so its short lines are under 10 instead of 30 (ours).
"""

_END = (".", "!", "?", ":", '"', "'", "”", "…", "。", "！", "？", "：", "；", "」", "》", "）", ")")
_SHORT = {"zh": 10}


def broken(text: str, language: str) -> str:
  """The first rule that the text breaks, or ""."""
  lines = [line for line in (line.strip() for line in text.split("\n")) if line]
  if not lines:
    return "fineweb_empty"
  if sum(line.endswith(_END) for line in lines) <= 0.12 * len(lines):
    return "fineweb_punctuation"
  characters = sum(map(len, lines))
  if characters - sum(map(len, set(lines))) >= 0.1 * characters:
    return "fineweb_duplicate_lines"
  if sum(len(line) < _SHORT.get(language, 30) for line in lines) >= 0.67 * len(lines):
    return "fineweb_short_lines"
  return ""
