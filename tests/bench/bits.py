"""What fewer bits cost: a checkpoint's answers to held-out questions, and its weights' size, by the bits of weights, keys and values.

  python -m tests.bench.bits CHECKPOINT     # prints a markdown table
"""

import sys
import time

import jax
import numpy as np

from bluelm_jax.data.tasks import reasoning
from bluelm_jax.evaluation import statistics
from bluelm_jax.evaluation import text
from bluelm_jax.inference.conversation import Speaker
from bluelm_jax.inference.request import Options
from tests.bench import machine

FORMS = {
    "as trained": {}, "int8, one scale an output": {"bits": 8}, "int4, groups of 32": {"bits": 4, "group": 32}, "int4, one scale an output": {"bits": 4},
    "keys and values in int8": {"kv_dtype": "int8"}, "int4, groups of 32; keys and values in int8": {"bits": 4, "group": 32, "kv_dtype": "int8"}}
ITEMS, SEED = 400, 7
OPTIONS = Options(max_tokens=88, thinking=True, answer_tokens=8)


def main(checkpoint: str):
  print(f"{machine.line()}; {ITEMS} held-out questions, thought about step by step\n")
  print("| decoder | MB | right, 95 % interval | answers as before | log-probability of the own words, mean change | s |\n|---|---|---|---|---|---|")
  asked, first = text.problems(ITEMS, SEED), None
  for name, form in FORMS.items():
    speaker = Speaker(checkpoint, slots=64, **form)
    prompts = [speaker.chat.prompt(reasoning.conversation(p, "long")[:1], True) for p in asked]
    start = time.perf_counter()
    answers = [a for (a,) in speaker.engine.generate(prompts, OPTIONS)]
    took = time.perf_counter() - start
    said = [speaker.tokenizer.decode([t.token for t in a if t.finish != "stop"]) for a in answers]
    right = sum(reasoning.is_correct(p, s) for p, s in zip(asked, said))
    low, high = statistics.wilson(right, ITEMS)
    logs = np.array([np.mean([t.logprob for t in a]) for a in answers])
    first = first or (said, logs.mean())
    params = speaker.engine.params.get("decoder", speaker.engine.params)
    size = sum(x.nbytes for x in jax.tree.leaves(params)) / 1e6
    same = np.mean([a == b for a, b in zip(said, first[0])])
    print(f"| {name} | {size:.1f} | {right / ITEMS:.3f} [{low:.3f}, {high:.3f}] | {same:.1%} | {logs.mean() - first[1]:+.4f} | {took:.0f} |", flush=True)


if __name__ == "__main__":
  main(*sys.argv[1:])
