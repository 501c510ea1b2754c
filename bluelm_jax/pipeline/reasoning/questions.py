"""Questions: what a user's record, or a generated one, becomes. A question is a Sample of one user turn whose meta has "question":

  id         names the question in the samples made of it
  kind       what yields are counted by: a generated task, or the check
  check      how an answer is told right, one of CHECKS; "gym" where reasoning-gym's own scorer does it
  answer     the reference, or None where a majority has to find it
  tolerance  of check "number", relative
  task       of check "gym": what makes the item again
  tests      of check "code": what the program must pass; and seconds, where the record says how long it may take

A record: {"question" or "problem": text, "answer"?, "options"?: [text, ...], "check"?, "tolerance"?, "tests"?, "seconds"?, "image" or
"images"?: paths or data: URLs}, and "<image>" marks where one stands, else they come first. Other fields are passed over.

A record with tests has check "code": the answer is the last block of Python in a reply, and is right if it passes all of them. They are
Python asserts, as a text or a list of texts, or {"inputs": [text, ...], "outputs": [text, ...]}, what a program reads from standard
input and what it must print, also as JSON. Each run is killed after `seconds`, else config.reasoning.check_seconds. The programs are run
on the pipeline's workers, with limits that guard against accidents and not against attacks; see execute.py before you run a stranger's.
"""

import re
from typing import Any, Mapping

from bluelm_jax.data.sample import Sample
from bluelm_jax.pipeline import language
from bluelm_jax.pipeline import normalise as normalise_lib
from bluelm_jax.pipeline.ingest import chat
from bluelm_jax.pipeline.normalise import normalise
from bluelm_jax.pipeline.reasoning import compare
from bluelm_jax.pipeline.reasoning import execute

CHECKS = ("choice", "number", "math", "exact", "contains", "code")
_LETTERS = "ABCDEFGHIJ"


def sample(row: Mapping[str, Any], source: str, licence: str, folder: str, check: str = "") -> Sample:
  """A user's record as a question; `check` is for those that name none, "" chooses by the answer.

  Raises:
    ValueError: no question, an unknown check, an answer that does not suit it, or an image that is absent.
  """
  if not isinstance(row, Mapping):
    raise ValueError(f"a row is a {type(row).__name__}; give JSON objects")
  row = {k: v for k, v in row.items() if v is not None}
  text = row.get("question") or row.get("problem")
  if not isinstance(text, str):
    raise ValueError(f"a row has keys {', '.join(map(str, row))[:80]}; it needs question or problem, a text")
  text = (normalise_lib.code if "tests" in row else normalise)(text)  # a program to go on with is indented
  text += "".join(f"\n{letter}. {normalise(str(o))}" for letter, o in zip(_LETTERS, _options(row)))
  answer = normalise(str(row["answer"])) if str(row.get("answer", "")).strip() else None
  check = row.get("check") or check or _check(answer, row)
  if check not in CHECKS:
    raise ValueError(f"a question has check {check!r}; use {', '.join(CHECKS)}")
  if (check == "code") != ("tests" in row):
    raise ValueError(f"a question has check {check} and {'no tests, and no majority can find a right program; give tests' if check == 'code' else 'tests, which are for check code'}")
  tolerance = float(row.get("tolerance", compare.TOLERANCE))
  if answer is not None and (check == "choice" and not compare.letter(answer) or check == "number" and compare.number(answer) is None):
    raise ValueError(f"a question has check {check} and the answer {answer[:40]!r}; mend one of them")
  if answer is None and check == "contains":
    raise ValueError("a question has check contains and no answer, and no majority can find one; give the answer or another check")
  if check == "code":
    return make(text, source, row.get("licence", licence), dict(kind=check, check=check, answer="", **_tested(row)), _images(row, text, folder))
  return make(text, source, row.get("licence", licence), dict(kind=check, check=check, answer=answer, tolerance=tolerance), _images(row, text, folder))


def make(text: str, source: str, licence: str, question: Mapping[str, Any], shown: tuple[Any, tuple[bytes, ...]] | None = None, code: str = "") -> Sample:
  """A question Sample; `shown` is its content with images, and these; `code` its language, where it is known."""
  content, images = shown or (text, ())
  return Sample(source, licence, messages=({"role": "user", "content": content},), images=images, meta={
      "language": code or language.of_question(text), "question": {"id": source, **question}})


def _options(row) -> list:
  options = row.get("options", [])
  if not isinstance(options, (list, tuple)) or len(options) > len(_LETTERS):
    raise ValueError(f"a question has options {str(options)[:40]!r}; give a list of up to {len(_LETTERS)}")
  return list(options)


def _tested(row) -> dict[str, Any]:
  seconds = row.get("seconds")
  if seconds is not None and not (isinstance(seconds, (int, float)) and not isinstance(seconds, bool) and 0 < seconds < float("inf")):
    raise ValueError(f"a question has seconds {seconds!r}; give a number over 0")
  return {"tests": execute.tests(row["tests"]), **({} if seconds is None else {"seconds": float(seconds)})}


def _check(answer: str | None, row) -> str:
  if "tests" in row:
    return "code"
  if row.get("options") or answer and re.fullmatch(f"[{_LETTERS}]", answer):
    return "choice"
  return "number" if answer and compare.number(answer) is not None else "math"


def _images(row, text: str, folder: str):
  given = [i for key in ("image", "images") if key in row for i in (row[key] if isinstance(row[key], (list, tuple)) else [row[key]])]
  if not given:
    return None
  marked = text if "<image>" in text else "<image>" * len(given) + text
  # The words of an answer are no part of a question; LLaVA's reader wants one.
  found = chat.sample({"image": given, "conversations": [{"from": "human", "value": marked}, {"from": "gpt", "value": "-"}]}, "", "", folder)
  return found.messages[0]["content"], found.images
