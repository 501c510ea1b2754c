"""PDF files to paragraphs."""

import io
import logging
import re

import pypdf

logging.getLogger("pypdf").setLevel(logging.CRITICAL)  # it reports every repaired object
_END = re.compile(r"[.!?:;。！？：；]['\"”’）)]?$")


def paragraphs(data: bytes) -> list[str]:
  """Paragraphs of all pages, each on one line; words cut at a line's end are joined.

  A line ends a paragraph where a blank line follows, or where it ends a sentence and is clearly shorter than the longest.

  Raises:
    ValueError: the file is damaged, encrypted or holds no text (a scan).
  """
  try:
    pages = [page.extract_text() for page in pypdf.PdfReader(io.BytesIO(data)).pages]
  except Exception as e:  # damaged files raise many kinds
    raise ValueError(f"not a readable PDF ({type(e).__name__}); save it again without a password") from e
  found = []
  for page in pages:
    lines = [line.strip() for line in page.splitlines()]
    longest = max(map(len, lines), default=0)
    current = ""
    for line in [*lines, ""]:
      if line:
        cut = re.search(r"[a-z]-$", current) and re.match("[a-z]", line)
        current = current[:-1] + line if cut else current + _gap(current, line) + line
      if current and (not line or _END.search(line) and len(line) < 0.8 * longest):
        found.append(" ".join(current.split()))
        current = ""
  if not found:
    raise ValueError("the PDF holds no text; it may be a scan, which needs OCR first")
  return found


def _gap(before: str, after: str) -> str:
  """What joins two lines: nothing inside Chinese text."""
  return "" if not before or "\u2e80" < before[-1] and "\u2e80" < after[0] else " "
