"""A model that has learnt says what transformers says with its parts: the miniature recipe, cut short, on held-out screens and questions."""

import os
import subprocess
import sys

from bluelm_jax.data import chat
from bluelm_jax.data import images
from bluelm_jax.data import sources
from bluelm_jax.evaluation import text
from bluelm_jax.inference.conversation import Speaker
from bluelm_jax.inference.request import Options
from tests.bench import machine
from tests.inference import composed
from tests.inference.small_engine import ids

STEPS = {"text": 300, "vision": 60, "adapter": 10, "joint": 120, "sft": 120}
COUNT = 48  # tokens of an answer


def test_greedy_tokens_are_those_of_transformers(tmp_path):
  flags = [f"--config.stages.{name}.steps={n}" for name, n in STEPS.items()]
  command = [sys.executable, "-m", "bluelm_jax.recipe", "--config=configs/recipes/miniature.py", f"--workdir={tmp_path / 'run'}", *flags]
  subprocess.run(command, check=True, cwd=machine.ROOT, env={**os.environ, "XLA_FLAGS": ""})  # one device, and programs that are made to last
  speaker = Speaker(tmp_path / "run", slots=8)
  screens = [images.decode(s.images[0]) for s in sources.read_shard("assets/screens-test.array_record")[:4]]
  ask = lambda *parts: [{"role": "user", "content": [{"type": kind, kind: part} for kind, part in parts]}]
  asked = [ask(("text", p.question)) for p in text.problems(8, 0)] + [ask(("image", s), ("text", "Point to the search bar.")) for s in screens]
  prompts = [speaker.chat.prompt(messages, False) for messages in asked]
  answers = speaker.engine.generate(prompts, Options(max_tokens=COUNT, stop_ids=()))
  never = [speaker.tokenizer.special_id(m) for m in (chat.THINK_OPEN, chat.THINK_CLOSE, *chat.IMAGE_MARKERS)]
  expected = composed.greedy(tmp_path / "run" / "5-sft", prompts, COUNT, tmp_path / "parts", never)
  same = [ids(answer) == want for (answer,), want in zip(answers, expected)]
  print(f"{machine.line()}; {sum(same)} of {len(same)} answers of {COUNT} tokens are the same; {len({tuple(w) for w in expected})} differ from each other")
  assert all(same) and len({tuple(w) for w in expected}) > 6
