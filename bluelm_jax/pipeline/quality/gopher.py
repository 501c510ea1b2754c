"""Gopher's rules (Rae et al. 2021, arXiv 2112.11446, appendix A.1.1) and their Chinese counterparts.

Chinese has no spaces: sizes count characters, the mean word length and the share of words with a letter become a share of
Han characters, and the stop words are the commonest function characters. The Chinese limits are ours.
"""

import operator
import re

from bluelm_jax.pipeline import language as language_lib

_STOP = {"the", "be", "to", "of", "and", "that", "have", "with"}
_STOP_ZH = re.compile("[的是在了和有不这为与可以个中]")
_LETTER_WORD = re.compile(r"\S*[^\W\d_]\S*")
_BULLETS = ("-", "*", "•", "·", "●", "‣", "○")
_ELLIPSES = ("...", "…")


def broken(text: str, language: str) -> str:
  """The first rule that the text breaks, or ""."""
  words = text.split()
  lines = [line for line in (line.strip() for line in text.split("\n")) if line]
  if language == "zh":
    count = len(text) - len(words) + 1 if words else 0  # characters but white space
    if not 80 <= count <= 150_000:
      return "gopher_length"
    if language_lib.han_share(text) < 0.5:
      return "gopher_letters"
    if len(set(_STOP_ZH.findall(text))) < 2:
      return "gopher_stop_words"
    symbols = (text.count("#") + text.count("...") + text.count("…")) / count * 1.5  # 1.5 characters a word
  else:
    if not 50 <= len(words) <= 100_000:
      return "gopher_length"
    if not 3 <= sum(map(len, words)) / len(words) <= 10:
      return "gopher_word_length"
    lower = text.lower().split()
    caseless = sum(map(operator.eq, lower, text.upper().split()))  # without letters, or of a script without case; faster than the pattern
    if caseless > 0.2 * len(words) and len(_LETTER_WORD.findall(text)) < 0.8 * len(words):
      return "gopher_letters"
    if len(_STOP.intersection(lower)) < 2:
      return "gopher_stop_words"
    symbols = (text.count("#") + text.count("...") + text.count("…")) / len(words)
  if symbols > 0.1:
    return "gopher_symbols"
  if sum(line.startswith(_BULLETS) for line in lines) > 0.9 * len(lines):
    return "gopher_bullets"
  if sum(line.endswith(_ELLIPSES) for line in lines) > 0.3 * len(lines):
    return "gopher_ellipses"
  return ""
