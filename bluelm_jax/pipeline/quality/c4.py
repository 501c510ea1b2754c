"""C4's rules (Raffel et al. 2020, JMLR 21(140), section 2.2) and their Chinese counterparts.

The paper's list of bad words is not applied, and "{" is left to the other rules: documentation of programs has braces.
"""

import itertools
import re

from bluelm_jax.data.forms import MARK

_END = (".", "!", "?", '"', "”", "。", "！", "？", "；", "…", "」", "）。")
_SENTENCE = re.compile(r"[.!?](?=\s|$|[\"”'])|[。！？；]")
_BOILERPLATE = re.compile(r"lorem ipsum|javascript (?:is|must be) (?:disabled|enabled)|enable javascript|terms of use|privacy policy|cookie policy|uses cookies|use of cookies", re.I)
_BOILERPLATE_ZH = re.compile("版权所有|备案号|ICP备|点击(?:查看|下载|进入)更多|请(?:开启|启用) ?JavaScript|隐私政策|使用条款|免责声明")


def prose_lines(text: str) -> str:
  """The lines that end a sentence, have five words (eight Han characters) and are no boilerplate, and marks of images."""
  return "\n".join(line for line in text.split("\n") if MARK in line or _is_prose(line))


def _is_prose(line: str) -> bool:
  if not line.endswith(_END) or _BOILERPLATE.search(line) or _BOILERPLATE_ZH.search(line):
    return False
  return len(line.split()) >= 5 or len(re.findall("[\u4e00-\u9fff]", line)) >= 8


def broken(text: str) -> str:
  """The first rule that the text breaks, or ""."""
  if "lorem ipsum" in text.lower():
    return "c4_lorem_ipsum"
  if sum(1 for _ in itertools.islice(_SENTENCE.finditer(text), 3)) < 3:
    return "c4_sentences"
  return ""
