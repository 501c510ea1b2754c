"""More questions out of users' questions: a generator says them otherwise, and rules see whether it did."""

import dataclasses
import re
from typing import Any, Mapping, Sequence

from bluelm_jax.data.sample import Sample
from bluelm_jax.pipeline import clean
from bluelm_jax.pipeline import decontaminate
from bluelm_jax.pipeline import language as languages
from bluelm_jax.pipeline import tokens
from bluelm_jax.pipeline.normalise import normalise
from bluelm_jax.pipeline.reasoning import generator
from bluelm_jax.pipeline.reasoning import prompts
from bluelm_jax.pipeline.reasoning import questions

_QUESTION = re.compile("<question>(.*?)</question>", re.DOTALL)
_NUMBER = re.compile(r"\d+(?:\.\d+)?")
_NEEDS = {"numbers": ("number", "math"), "reverse": ("number", "math"), "translate": ("number", "math", "choice"), "paraphrase": tuple(c for c in questions.CHECKS if c != "code")}


def able(question: Sample, kind: str) -> bool:
  """Whether this rewriting suits a question: generated ones have seeds for that, an answer in words would need translating too, and tests call names that a program must keep."""
  q = question.meta["question"]
  return "task" not in q and q["check"] in _NEEDS[kind]


def found(reply: str) -> str:
  """The question between <question> and </question>; "" where there is not just one."""
  inside = _QUESTION.findall(reply.rpartition("</think>")[2])
  return normalise(inside[0]) if len(inside) == 1 else ""


def numbers_differ(before: str, after: str) -> bool:
  """Whether the numbers of two texts are other numbers; their order is free."""
  return sorted(map(float, _NUMBER.findall(before))) != sorted(map(float, _NUMBER.findall(after)))


def broken(question: Sample, kind: str, text: str) -> str:
  """The first rule that a rewritten question breaks, or ""."""
  before, language = clean.text_of(question), question.meta["language"]
  if not text:
    return "rewrite_missing"
  if tokens.split_words(text) == tokens.split_words(before):
    return "rewrite_same"
  if (languages.of_question(text) == "zh") != ((language == "zh") != (kind == "translate")):
    return "rewrite_language"
  if kind in prompts.KEEP_ANSWER and numbers_differ(before, text):
    return "rewrite_numbers"
  return ""


def rewrite(given: Sequence[Sample], config: Mapping[str, Any], evaluation: decontaminate.Tables, folder: str) -> tuple[list[Sample], dict[str, Any]]:
  """(the questions and what is made of them, {"made": kind -> count, "removed": rule -> (count, [(source, beginning)])})."""
  tries = [(q, kind) for q in given for kind in config["reasoning"]["rewrite"] if able(q, kind)]
  replies = generator.ask(config["reasoning"]["generator"], [prompts.rewrite(q, kind) for q, kind in tries], 1, folder).replies if tries else []
  texts = [found(reply[0]["text"]) if reply else "" for reply in replies]
  rules = [broken(q, kind, text) for (q, kind), text in zip(tries, texts)]
  seen = decontaminate.contaminated(tokens.words(texts), evaluation)
  rules = [rule or ("rewrite_contaminated" if bad else "") for rule, bad in zip(rules, seen)]
  made, removed = {}, {}
  out = list(given)
  for (question, kind), text, rule in zip(tries, texts, rules):
    if rule:
      removed.setdefault(rule, []).append((question.source, text))
    else:
      made[kind] = made.get(kind, 0) + 1
      out.append(_question(question, kind, text))
  return out, {"made": made, "removed": clean.counted(removed)}


def _question(parent: Sample, kind: str, text: str) -> Sample:
  q = parent.meta["question"]
  answer = q["answer"] if kind in prompts.KEEP_ANSWER else None
  language = {"zh": "en"}.get(parent.meta["language"], "zh") if kind == "translate" else parent.meta["language"]
  return dataclasses.replace(parent, messages=({"role": "user", "content": prompts.with_text(parent, text)},), meta={
      **parent.meta, "language": language, "question": {**q, "id": f"{q['id']}/{kind}", "rewriting": kind, "answer": answer}})
