"""Majority vote where no reference says what is right (self-consistency, Wang et al. 2022, arXiv 2203.11171)."""

from typing import Callable, Sequence


def groups(answers: Sequence[str], same: Callable[[str, str], bool]) -> list[list[int]]:
  """Indices of answers that say the same, the largest group first, then the one that came first; "" is in none."""
  found: list[list[int]] = []
  for i, answer in enumerate(answers):
    if answer:
      group = next((g for g in found if same(answers[g[0]], answer)), None)
      if group is None:
        found.append([i])
      else:
        group.append(i)
  return sorted(found, key=lambda g: -len(g))


def majority(answers: Sequence[str], same: Callable[[str, str], bool], agreement: float) -> tuple[str, list[int], str]:
  """(the label, who gave it, "") or ("", [], the rule that it breaks).

  The label needs `agreement` of all answers, those that are absent ("") counted, and two voters at least.
  """
  found = groups(answers, same)
  if not found:
    return "", [], "no_answers"
  if len(found) > 1 and len(found[0]) == len(found[1]):
    return "", [], "tie"
  if len(found[0]) < max(agreement * len(answers), 2):
    return "", [], "no_majority"
  return answers[found[0][0]], found[0], ""
