"""Answers one prompt, streaming.

  python -m bluelm_jax.generate --checkpoint=DIR --image=screen.png --prompt="Point to the red button." [--thinking]
"""

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
_TOP_K = flags.DEFINE_integer("top_k", 0, "Keep the k most probable tokens; 0 keeps all.")
_TOP_P = flags.DEFINE_float("top_p", 1.0, "Keep the most probable tokens up to this mass.")
_SEED = flags.DEFINE_integer("seed", 0, "Of the sampling.")


def main(argv):
  del argv
  process.keep_memory()
  process.cache_programs()
  from bluelm_jax.inference import conversation
  from bluelm_jax.inference.generate import Options

  options = Options(_MAX_TOKENS.value, _TEMPERATURE.value, _TOP_K.value, _TOP_P.value, _SEED.value)
  speaker = conversation.Speaker(pathlib.Path(_CHECKPOINT.value))
  for piece in speaker.reply(_PROMPT.value, _IMAGE.value, _THINKING.value, options):
    sys.stdout.write(piece)
    sys.stdout.flush()
  print()


if __name__ == "__main__":
  door.run(main, required=("checkpoint", "prompt"))
