"""Which paths of which questions are kept: rules, the right answer or a majority's, rejection sampling."""

import collections
from typing import Any, Mapping, NamedTuple, Sequence

import numpy as np

from bluelm_jax.data.sample import Sample
from bluelm_jax.pipeline import classify
from bluelm_jax.pipeline import clean
from bluelm_jax.pipeline import decontaminate
from bluelm_jax.pipeline import select
from bluelm_jax.pipeline import tokens
from bluelm_jax.pipeline.reasoning import choose
from bluelm_jax.pipeline.reasoning import compare
from bluelm_jax.pipeline.reasoning import execute
from bluelm_jax.pipeline.reasoning import generator
from bluelm_jax.pipeline.reasoning import prompts
from bluelm_jax.pipeline.reasoning import replies
from bluelm_jax.pipeline.reasoning import rules
from bluelm_jax.pipeline.reasoning import verifier
from bluelm_jax.pipeline.reasoning import vote


class Verdict(NamedTuple):
  """Of one question's paths: `broken`, the first rule that each breaks or ""; `rate`, the share that is right; `outcome`, "solved" or why not.

  `label` is the answer by which a path is right: the reference or the majority's; "" where there is none, or many would do.
  """

  broken: list[str]
  rate: float
  outcome: str
  label: str


def judge(questions: Sequence[Sample], answers: Sequence[Sequence[Mapping[str, str]]], config: Mapping[str, Any], evaluation: decontaminate.Tables):
  """(the samples kept, counts by kind of question, removed: rule -> (count, examples)) of a block; `answers` are each question's replies."""
  r = config["reasoning"]
  check = verifier.shared(r["check_seconds"])
  paths = [[replies.path(reply, q.meta["question"]["check"]) for reply in some] for q, some in zip(questions, answers)]
  form = iter(_form([(q, p) for q, some in zip(questions, paths) for p in some], config, evaluation))
  tokenizer = select.tokenizer(config["tokenizer"])
  kept, removed, kinds = [], collections.defaultdict(list), collections.defaultdict(_nothing)
  for question, some in zip(questions, paths):
    verdict = _verdict(question, some, [next(form) for _ in some], r, check)
    broken = _choose(some, verdict, r, config["seed"])
    samples = [_sample(question, p, verdict, r, tokenizer) for p, rule in zip(some, broken) if not rule]
    kept += samples
    for p, rule in zip(some, broken):
      if rule:
        removed[rule].append((question.source, f"{p.thought}\n{p.text}"))
    _count(kinds[_kind(question)], verdict, broken, samples)
  return kept, dict(kinds), clean.counted(removed)


def _form(pairs, config, evaluation) -> list[str]:
  """The first rule of form that each (question, path) breaks, or ""."""
  r, tokenizer = config["reasoning"], select.tokenizer(config["tokenizer"])
  texts = [f"{p.thought}\n{p.text}" for _, p in pairs]
  words = tokens.words(texts)
  said = [f"{p.thought}\n{p.text}" for p in (_prose(q, p) for q, p in pairs)]  # programs are indented, and draw lines
  loop = rules.loops(said, [q.meta["language"] for q, _ in pairs], words if said == texts else tokens.words(said))
  seen = decontaminate.contaminated(words, evaluation)
  result = []
  for (question, path), looped, contaminated in zip(pairs, loop, seen):
    broken = next((rule.__name__ for rule in rules.FORM if rule(path)), "")
    if not broken:
      size, (least, most) = len(tokenizer.encode(path.thought)), r["thought_tokens"]
      found = {
          "thought_short": rules.thought_short(size, least), "thought_long": rules.thought_long(size, most),
          "language_other": rules.language_other(_prose(question, path), question.meta["language"]), "loop": looped, "contaminated": contaminated}
      broken = next((rule for rule, is_so in found.items() if is_so), "")
    result.append(broken)
  return result


def _prose(question: Sample, path: replies.Path) -> replies.Path:
  """Where programs are asked for, what is said beside them: their names are of no language."""
  if question.meta["question"]["check"] != "code":
    return path
  return path._replace(thought=replies.prose(path.thought or ""), text=replies.prose(path.text))


def _verdict(question: Sample, paths: Sequence[replies.Path], form: Sequence[str], r, check: verifier.Verifier) -> Verdict:
  """Difficulty and votes are about answers: a path of bad form has its say in them, unless it was cut off."""
  q = question.meta["question"]
  answers = ["" if p.truncated else p.answer for p in paths]
  if not paths:
    return Verdict([], 0.0, "refused", "")
  label, hung = q["answer"], set()
  if label is None or q.get("rewriting"):
    winner, voters, outcome = vote.majority(answers, lambda a, b: _same(q, a, b, check) is True, r["agreement"])
    if outcome or (label is not None and not _same(q, label, winner, check)):
      outcome = outcome or "rewrite_disagrees"
      return Verdict([rule or outcome for rule in form], 0.0, outcome, "")
    label, right = winner if label is None else label, [i in voters for i in range(len(paths))]
  else:
    verdicts = [_right(q, a, check, r["check_seconds"]) if a else False for a in answers]
    hung = {i for i, v in enumerate(verdicts) if v is None}
    right = [v is True for v in verdicts]
  rate = sum(right) / len(right)
  broken = [rule or ("unchecked" if i in hung else "" if right[i] else "wrong") for i, rule in enumerate(form)]
  low, high = r["pass_rate"]
  outcome = "unsolved" if not any(right) else "too_hard" if rate < low else "too_easy" if rate > high else "solved"
  if outcome in ("too_hard", "too_easy"):
    broken = [rule or outcome for rule in broken]
  return Verdict(broken, rate, outcome, label)


def _right(q: Mapping[str, Any], answer: str, check: verifier.Verifier, seconds: float) -> bool | None:
  """Whether an answer is right; None where the check took too long. A program that takes too long is wrong."""
  if q["check"] == "code":
    return execute.passes(answer, q["tests"], q.get("seconds", seconds))
  if q["check"] != "gym":
    return _same(q, q["answer"], answer, check)
  try:
    return check.gym(q["task"], answer)
  except verifier.Hung:
    return None


def _same(q: Mapping[str, Any], reference: str, answer: str, check: verifier.Verifier) -> bool | None:
  found = compare.same(q["check"], reference, answer, q.get("tolerance", compare.TOLERANCE))
  try:
    return check.math(reference, answer) if found is None else found
  except verifier.Hung:
    return None


def _choose(paths: Sequence[replies.Path], verdict: Verdict, r, seed: int) -> list[str]:
  """The verdict's rules, and of the paths that break none all but r.keep given one."""
  good = [i for i, rule in enumerate(verdict.broken) if not rule]
  kept, copies = choose.choose([f"{paths[i].thought}\n{paths[i].text}" for i in good], r["keep"], r["similarity"], seed)
  broken = list(verdict.broken)
  for at, i in enumerate(good):
    broken[i] = "near_copy" if at in copies else "" if at in kept else "surplus"
  return broken


def _sample(question: Sample, path: replies.Path, verdict: Verdict, r, tokenizer) -> Sample:
  q = question.meta["question"]
  style = "long" if len(tokenizer.encode(path.thought)) > r["long_tokens"] else "short"
  messages = (prompts.asked(question), {"role": "assistant", "content": path.text, "reasoning_content": path.thought})
  found = Sample(question.source, question.licence, messages=messages, images=question.images, meta={
      **{k: question.meta[k] for k in ("language", "domain")}, "question_id": q["id"], "checker": q["check"], "answer": verdict.label,
      "voted": q["answer"] is None, "pass_rate": verdict.rate, "style": style, "generator": generator.name(r["generator"])})
  found.meta["ability"] = classify.ability(found)
  return found


def _kind(question: Sample) -> str:
  q = question.meta["question"]
  return f"{q['kind']}, {q['rewriting']}" if "rewriting" in q else q["kind"]


def _nothing() -> dict[str, Any]:
  return {"questions": 0, "paths": 0, "outcomes": {}, "removed": {}, "short": 0, "long": 0, "pass_rates": [0] * 11}


def _count(kind: dict[str, Any], verdict: Verdict, broken: Sequence[str], samples: Sequence[Sample]) -> None:
  """`pass_rates`: questions with a label by pass rate 0, up to 0.1, ... 1."""
  kind["questions"] += 1
  kind["paths"] += len(broken)
  kind["outcomes"][verdict.outcome] = kind["outcomes"].get(verdict.outcome, 0) + 1
  for rule in broken:
    if rule:
      kind["removed"][rule] = kind["removed"].get(rule, 0) + 1
  for sample in samples:
    kind[sample.meta["style"]] += 1
  if verdict.outcome in ("solved", "unsolved", "too_easy", "too_hard"):
    kind["pass_rates"][int(np.ceil(10 * verdict.rate - 1e-9))] += 1
