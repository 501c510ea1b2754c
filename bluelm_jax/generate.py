"""Answers one prompt, streaming.

  python -m bluelm_jax.generate --checkpoint=DIR --image=screen.png --prompt="Point to the red button." [--thinking]
"""

import itertools
import os
import pathlib
import sys

from absl import flags

from bluelm_jax import door
from bluelm_jax import process

_CHECKPOINT = flags.DEFINE_string("checkpoint", None, "A HuggingFace directory, a converted one, or a workdir.")
_PROMPT = flags.DEFINE_string("prompt", None, "What the user says.")
_IMAGE = flags.DEFINE_multi_string("image", [], "An image shown before the prompt; may be repeated.")
_THINKING = flags.DEFINE_bool("thinking", False, "Whether the model thinks before it answers.")
_MAX_TOKENS = flags.DEFINE_integer("max_tokens", 256, "New tokens at most.")
_TEMPERATURE = flags.DEFINE_float("temperature", 0.0, "0 is greedy.")
_TOP_K = flags.DEFINE_integer("top_k", None, "Keep the k most probable tokens; all where it is absent or 0.")
_TOP_P = flags.DEFINE_float("top_p", None, "Keep the most probable tokens up to this mass; all where it is absent.")
_SEED = flags.DEFINE_integer("seed", None, "Of the sampling; 0 where it is absent.")


def main(argv):
  del argv
  sampling = {f.name: f.value for f in (_TOP_K, _TOP_P, _SEED) if f.value is not None}
  if sampling and _TEMPERATURE.value == 0:
    raise ValueError(f"--{next(iter(sampling))} has no effect at temperature 0; give a --temperature or leave it out")
  process.keep_memory()
  process.cache_programs()
  from bluelm_jax.inference import conversation
  from bluelm_jax.inference.request import Options

  options = Options(_MAX_TOKENS.value, _TEMPERATURE.value, thinking=_THINKING.value, **sampling)
  speaker = conversation.Speaker(pathlib.Path(_CHECKPOINT.value), slots=1)
  pieces = _shown(speaker.reply(_PROMPT.value, _IMAGE.value, options))
  try:
    for text in itertools.chain(pieces, ["\n"]):
      sys.stdout.write(text)
      sys.stdout.flush()
  except BrokenPipeError:  # the reader has had enough, e.g. `| head`
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _shown(pieces):
  """A thought comes first, dimmed on a terminal, and a blank line before the answer."""
  dim, plain = ("\x1b[2m", "\x1b[0m") if sys.stdout.isatty() else ("", "")
  thinking = False
  for piece in pieces:
    if piece.phase == "think":
      yield f"{dim}{piece.text}{plain}"
    else:
      yield "\n\n" * thinking + piece.text
    thinking = piece.phase == "think"


if __name__ == "__main__":
  door.run(main, required=("checkpoint", "prompt"))
