"""Reasoning data: questions with checked ways to their answers, short and long thoughts in shards of their own.

  python -m bluelm_jax.prepare --config=configs/data/reasoning.py:demo --output=DIR      # offline; a solver that errs on purpose
  python -m bluelm_jax.prepare --config=configs/data/reasoning.py:gym --output=DIR --config.reasoning.generator.base_url=http://HOST:8000/v1 --config.reasoning.generator.model=MODEL
  python -m bluelm_jax.prepare --config=configs/data/reasoning.py:MY_FOLDER --output=DIR --config.reasoning.generator.base_url=... --config.reasoning.generator.model=... --config.reasoning.generator.api_key_env=MY_KEY

gym takes reasoning-gym's tasks (pip install -e '.[pipeline,reasoning]'); a folder holds .jsonl, .json or .parquet files of questions, whose fields
bluelm_jax/pipeline/reasoning/questions.py lists; those with tests ask for programs, which are run on the workers. Killed or changed, a run asks for nothing twice: answers lie in DIR/answers.
In a stage's config, shards of short thoughts are for 3 epochs and of long ones for 9, as in the paper:

  short=dict(kind="conversations", path="DIR/short-train-*.array_record", epochs=3), long=dict(kind="conversations", path="DIR/long-train-*.array_record", epochs=9)
"""

import glob

from bluelm_jax.pipeline import defaults

FORMATS = ("jsonl", "json", "parquet")


def get_config(what: str = "demo"):
  c = defaults.dataset()
  c.name = f"reasoning_{what.strip('/').split('/')[-1]}"
  c.block_bytes = 50_000  # some hundred questions: a block is what a worker samples at a time
  c.mixture.by = "style"
  if what == "demo":
    c.sources.tasks = dict(kind="tasks", path="*", licence="Apache-2.0", count=200)
    c.reasoning.generator.function = "bluelm_jax.pipeline.reasoning.demo:solve"
    c.reasoning.rewrite = ("paraphrase", "translate", "numbers")
    c.reasoning.long_tokens = 40
  elif what == "gym":
    c.sources.easy = dict(kind="reasoning_gym", path="chain_sum,leg_counting,number_sorting,propositional_logic,syllogism,simple_equations", licence="Apache-2.0", levels=(0, 1, 2))
    c.sources.words = dict(kind="reasoning_gym", path="gsm_symbolic", licence="Apache-2.0")
    c.reasoning.pass_rate = (0.05, 0.95)  # what is always right teaches little
  else:
    for extension in FORMATS:
      if glob.glob(f"{what}/**/*.{extension}", recursive=True):
        c.sources[extension] = dict(kind="questions", path=f"{what}/**/*.{extension}", licence="unknown")
    if not c.sources:
      raise ValueError(f"no .{', .'.join(FORMATS)} files in {what}; give a folder of questions, gym, or demo")
    c.reasoning.rewrite = ("paraphrase", "translate", "numbers")
  return c
