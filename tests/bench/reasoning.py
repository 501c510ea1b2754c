"""How right kept reasoning paths are, with a reference, with a majority's label, and with neither, for a solver of known errors.

  python -m tests.bench.reasoning     # prints a markdown table

Questions are 500 drawn from data/tasks/reasoning.py; the solver is pipeline/reasoning/demo.py with 8 paths a question, and a chance that
a step goes wrong; a tenth of its replies are malformed. At most 2 paths a question are kept. A chain is right if it has every right step.
"""

import numpy as np

from bluelm_jax.data.tasks import reasoning
from bluelm_jax.pipeline import decontaminate
from bluelm_jax.pipeline import defaults
from bluelm_jax.pipeline.reasoning import demo
from bluelm_jax.pipeline.reasoning import judge
from bluelm_jax.pipeline.reasoning import prompts
from bluelm_jax.pipeline.reasoning import questions

PATHS, QUESTIONS = 8, 500
ERRORS, AGREEMENTS = (0.02, 0.05, 0.1, 0.2), (0.5, 0.7, 0.9)


def asked(problems, known: bool):
  """The problems as questions, with their answers or without."""
  made = [questions.make(p.question, str(i), "MIT", dict(kind=p.task, check="number", answer=p.answer if known else None), code=p.language) for i, p in enumerate(problems)]
  for question in made:
    question.meta["domain"] = "general"
  return made


def line(how: str, error: float, problems, known: bool, agreement: float) -> str:
  """One row of the table."""
  given = asked(problems, known)
  answers = [[{"text": t, "thought": "", "finish": "stop"} for t in some] for some in demo.solve([prompts.solve(q) for q in given], PATHS, error)]
  config = defaults.dataset().to_dict()
  config["reasoning"].update(samples=PATHS, agreement=agreement)
  config["reasoning"]["generator"]["function"] = "bluelm_jax.pipeline.reasoning.demo:solve"
  kept, _, _ = judge.judge(given, answers, config, decontaminate.tables([]))
  problem = [problems[int(s.meta["question_id"])] for s in kept]
  right = np.mean([s.meta["answer"] == p.answer for s, p in zip(kept, problem)])
  steps = [demo.work(p.question, np.random.default_rng(0), 0.0)[0] for p in problem]
  chain = np.mean([all(step in s.messages[1]["reasoning_content"] for step in want) for s, want in zip(kept, steps)])
  return f"| {error} | {how} | {len({s.meta['question_id'] for s in kept})} | {len(kept)} | {right:.3f} | {chain:.3f} |"


def main():
  rng = np.random.default_rng(7)
  problems = list({p.question: p for p in (reasoning.make(rng) for _ in range(QUESTIONS))}.values())
  print(f"{len(problems)} questions, {PATHS} paths each\n\n| errors a step | label | questions solved | paths kept | answers right | chains right |\n|---|---|---|---|---|---|")
  for error in ERRORS:
    replies = demo.solve([prompts.solve(q) for q in asked(problems, False)], PATHS, error)
    alone = [f"\\boxed{{{p.answer}}}" in text for p, some in zip(problems, replies) for text in some if "boxed" in text]
    print(f"| {error} | none | | {len(alone)} | {np.mean(alone):.3f} | |")
    for agreement in AGREEMENTS:
      print(line(f"majority of {agreement}", error, problems, False, agreement))
    print(line("reference", error, problems, True, 1.0), flush=True)


if __name__ == "__main__":
  main()
