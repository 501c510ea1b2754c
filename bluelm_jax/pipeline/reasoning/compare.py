"""Whether two answers are the same, by rules that need no library. What needs one is in verifier.py."""

import fractions
import re

TOLERANCE = 1e-6
_NUMBER = re.compile(
    r"(?:[a-zA-Z]\s*=\s*)?([-+]?)\s*[$¥€£]?\s*((?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d*)?|\.\d+)((?:[eE][-+]?\d{1,2})?)((?:\s*/\s*\d+)?)"
    r"\s*(?:[%°\u4e00-\u9fff]\D*|(?<=\s)[^\W\d]\D*)?", re.DOTALL)
_FRACTION = re.compile(r"\\[dt]?frac\{(\d+)\}\{(\d+)\}")
_LETTER = re.compile(r"[(（\s]*([A-Ja-j])(?:[)）.．:：].*)?", re.DOTALL)
_WRAP = re.compile(r"\\(?:text|mathrm|textbf|mathbf)\s*\{([^{}]*)\}")


def plain(answer: str) -> str:
  """In lower case, without LaTeX's text commands, dollar signs, doubled spaces and a full stop at the end."""
  return re.sub(r"\s+", " ", _WRAP.sub(r"\1", answer).replace("$", "")).strip().rstrip(".。").casefold()


def letter(answer: str) -> str:
  """The option of "B", "(b)" or "B. 12 apples"; "" where there is none."""
  found = _LETTER.fullmatch(_WRAP.sub(r"\1", answer).strip())
  return found[1].upper() if found else ""


def number(answer: str) -> fractions.Fraction | None:
  r"""The number of an answer such as "1,200 m", "3/4", "x = 5" or "$\frac{1}{2}$"; None where it says anything else. 50% is 50."""
  text = _FRACTION.sub(r"\1/\2", _WRAP.sub(r" \1", answer)).replace("−", "-").replace("\\", "")  # \% and \$
  found = _NUMBER.fullmatch(text.strip().strip("$").rstrip(".。 ").lstrip())
  try:
    return fractions.Fraction("".join(found.groups()).replace(",", "").replace(" ", "")) if found else None
  except (ValueError, ZeroDivisionError):
    return None


def same(check: str, reference: str, answer: str, tolerance: float = TOLERANCE) -> bool | None:
  """Whether `answer` says what `reference` says; None where only a verifier can tell (check "math")."""
  if check == "choice":
    return letter(reference) == letter(answer) != ""
  if check == "number":
    a, b = number(reference), number(answer)
    return a is not None and b is not None and abs(a - b) <= fractions.Fraction(tolerance) * abs(a)
  if check == "contains":
    return plain(reference) in plain(answer)
  return plain(reference) == plain(answer) or (None if check == "math" else False)
