"""What became of questions and paths, by kind of question and by rule."""

import collections
from typing import Any, Mapping

from bluelm_jax.pipeline import charts
from bluelm_jax.pipeline import stages

_RATES = ("none", *(f"up to {i} in 10" for i in range(1, 11)))


def yields(stage: Mapping[str, stages.Stage]) -> dict[str, Any]:
  """Sums over blocks: questions given, rewritten, refused and solved, paths, and all of that by kind.

  `pass_rates` counts questions with a label by the share of their paths that are right: 0, up to 0.1, ... up to 1.
  """
  rewrites, judged = stage["rewrite"].counts().values(), stage["judge"].counts().values()
  kinds: dict[str, dict[str, Any]] = {}
  for counts in judged:
    for name, kind in counts["kinds"].items():
      kinds[name] = _add(kinds[name], kind) if name in kinds else kind
  total: dict[str, Any] = {}
  for kind in kinds.values():
    total = _add(total, kind) if total else kind
  return {
      "given": sum(c["documents"] for c in rewrites), "rewritten": dict(sum((collections.Counter(c["made"]) for c in rewrites), collections.Counter())),
      **total, "kinds": dict(sorted(kinds.items()))}


def _add(a, b):
  """The sum of two of judge's counts, part by part."""
  if isinstance(a, dict):
    return {key: _add(a[key], b[key]) if key in a and key in b else a.get(key, b.get(key)) for key in sorted({*a, *b})}
  return [x + y for x, y in zip(a, b)] if isinstance(a, list) else a + b


def card(found: Mapping[str, Any]) -> list[str]:
  """The data card's section on reasoning."""
  rows = [
      [name, kind["questions"], kind["outcomes"].get("solved", 0), kind["paths"], kind["short"], kind["long"], _list(kind["outcomes"], "solved"), _list(kind["removed"])]
      for name, kind in found["kinds"].items()]
  head = ["kind", "questions", "solved", "paths", "kept short", "kept long", "questions left out", "paths left out"]
  return [
      "<h2>Reasoning</h2>", charts.bars({
          "questions given": found["given"], **{f"rewritten: {kind}": n for kind, n in found["rewritten"].items()}, "questions asked": found["questions"],
          "questions solved": found["outcomes"].get("solved", 0), "paths": found["paths"], "kept, short": found["short"], "kept, long": found["long"]}),
      "<h2>Reasoning, by kind of question</h2>", charts.table(head, rows),
      "<h2>Questions by share of right paths</h2>", charts.bars(dict(zip(_RATES, found["pass_rates"])))]


def _list(counts: Mapping[str, int], but: str = "") -> str:
  return ", ".join(f"{name} {n}" for name, n in sorted(counts.items(), key=lambda kv: (-kv[1], kv[0])) if name != but)
