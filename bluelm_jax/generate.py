"""Answers one prompt, a file of them, or chats on the terminal.

  python -m bluelm_jax.generate --checkpoint=DIR --image=screen.png --prompt="Point to the red button." --draw=answer.png
  python -m bluelm_jax.generate --checkpoint=DIR --prompts=questions.jsonl --thinking --thinking_token_budget=64 > answers.jsonl
  python -m bluelm_jax.generate --checkpoint=DIR        # a chat; /help tells its commands
"""

import os
import pathlib
import sys

from absl import flags

from bluelm_jax import door
from bluelm_jax import process

_CHECKPOINT = flags.DEFINE_string("checkpoint", None, "A HuggingFace directory, a converted one, or a workdir.")
_PROMPT = flags.DEFINE_string("prompt", None, "What the user says.")
_PROMPTS = flags.DEFINE_string("prompts", None, "A JSONL file of prompts, see inference/terminal.py; answers are lines of JSON.")
_IMAGE = flags.DEFINE_multi_string("image", [], "An image shown before the prompt; may be repeated.")
_DRAW = flags.DEFINE_string("draw", None, "Where to draw the point or box that the answer names, on the last image.")
_THINKING = flags.DEFINE_bool("thinking", False, "Whether the model thinks before it answers.")
_BUDGET = flags.DEFINE_integer("thinking_token_budget", None, "Tokens of thought at most; as many as leave room for an answer where it is absent.")
_WRAP_UP = flags.DEFINE_string("wrap_up", "", "Said before a thought is closed because its budget is spent.")
_MAX_TOKENS = flags.DEFINE_integer("max_tokens", 256, "New tokens at most.")
_TEMPERATURE = flags.DEFINE_float("temperature", 0.0, "0 is greedy.")
_TOP_K = flags.DEFINE_integer("top_k", None, "Keep the k most probable tokens; all where it is absent or 0.")
_TOP_P = flags.DEFINE_float("top_p", None, "Keep the most probable tokens up to this mass; all where it is absent.")
_SEED = flags.DEFINE_integer("seed", None, "Of the sampling; 0 where it is absent.")
_BITS = flags.DEFINE_integer("bits", None, "8 or 4: the decoder's weights in so many bits.")
_GROUP = flags.DEFINE_integer("group", None, "Inputs of a weight that share a scale; all of an output's where it is absent.")


def main(argv):
  del argv
  sampling = {f.name: f.value for f in (_TOP_K, _TOP_P, _SEED) if f.value is not None}
  if sampling and _TEMPERATURE.value == 0:
    raise ValueError(f"--{next(iter(sampling))} has no effect at temperature 0; give a --temperature or leave it out")
  if _PROMPTS.value is not None and (_PROMPT.value is not None or _IMAGE.value):
    raise ValueError("--prompts names prompts and images in its file; leave --prompt and --image out")
  if _DRAW.value is not None and (_PROMPT.value is None or not _IMAGE.value):
    raise ValueError("--draw needs a --prompt and an --image; in a chat type /draw PATH")
  if _GROUP.value is not None and _BITS.value is None:
    raise ValueError("--group has no effect without --bits; give both")
  process.keep_memory()
  process.cache_programs()
  from bluelm_jax.inference import terminal
  from bluelm_jax.inference.conversation import Speaker
  from bluelm_jax.inference.request import Options

  options = Options(_MAX_TOKENS.value, _TEMPERATURE.value, thinking=_THINKING.value, thinking_token_budget=_BUDGET.value, **sampling)
  slots = 1 if _PROMPTS.value is None else 32
  speaker = Speaker(pathlib.Path(_CHECKPOINT.value), wrap_up=_WRAP_UP.value, slots=slots, bits=_BITS.value, group=_GROUP.value)
  speaker.release()
  dim = sys.stdout.isatty()
  if _PROMPTS.value is not None:
    _write(f"{line}\n" for line in terminal.many(speaker, pathlib.Path(_PROMPTS.value), options))
  elif _PROMPT.value is not None:
    said = []
    _write(terminal.shown(terminal.noted(speaker.reply(_PROMPT.value, _IMAGE.value, options), said), dim))
    _write(["\n"])
    if _DRAW.value is not None:
      print(terminal.draw(_IMAGE.value[-1], "".join(said), _DRAW.value), file=sys.stderr)
  else:
    _write(terminal.chat(speaker, options, terminal.typed(), dim, _IMAGE.value))


def _write(texts) -> None:
  try:
    for text in texts:
      sys.stdout.write(text)
      sys.stdout.flush()
  except BrokenPipeError:  # the reader has had enough, e.g. `| head`
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
  door.run(main, required=("checkpoint",))
