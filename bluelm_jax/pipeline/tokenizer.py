"""Trains the miniature's tokenizer: byte-level BPE, digits and lone capitals on their own.

  python -m bluelm_jax.pipeline.tokenizer --text=assets/text-train.array_record --output=tokenizer.json

It learns from the documents, from what the tasks say and from the files of --extra.
"""

import itertools
import pathlib
from typing import Iterable

from absl import flags
import numpy as np
import tokenizers
from tokenizers import decoders
from tokenizers import models
from tokenizers import pre_tokenizers
from tokenizers import trainers

from bluelm_jax import door
from bluelm_jax.data import sources
from bluelm_jax.data.tasks import reasoning
from bluelm_jax.data.tasks import screens

SPECIAL = (
    "<|pad|>", "<|endoftext|>", "[|Human|]:", "[|AI|]:", "[|System|]:", "[|BlueThink|]", "<think>", "</think>",
    "<im_start>", "<image>", "<im_end>", *(f"<tile_{i}>" for i in range(16)), "<thumbnail>")

# Added after the merges, beyond `vocab_size`: halves of a point, "(500," and "060)", and the words that name
# elements as far as merges do not make them one token; visual tokens learn to resemble these.
COORDINATES = tuple(f"({v:03d}," for v in screens.COORDINATES) + tuple(f"{v:03d})" for v in screens.COORDINATES)
_ROLES = {role: names for role, names in screens.ROLE_NAMES.items() if role not in screens.WEB_ROLES}
_PAIRS = (*_ROLES.values(), *screens.COLOR_NAMES.items(), *screens.STATE_NAMES.values())
WORDS = tuple(dict.fromkeys(word for en, zh in _PAIRS for word in (" " + en, zh)))


def train(texts: Iterable[str], vocab_size: int, extra_texts: Iterable[str] = ()) -> tokenizers.Tokenizer:
  """A tokenizer that round-trips any UTF-8 text; what `extra_texts` repeat gets short encodings."""
  tokenizer = tokenizers.Tokenizer(models.BPE())
  split = tokenizers.Regex(r"\d|(?<![A-Za-z])[A-Z](?![A-Za-z])|[;>:()\[\],]")
  tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
      pre_tokenizers.Split(split, "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)])
  tokenizer.decoder = decoders.ByteLevel()
  trainer = trainers.BpeTrainer(
      vocab_size=vocab_size, special_tokens=list(SPECIAL), initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
  tokenizer.train_from_iterator(itertools.chain(texts, extra_texts), trainer)
  tokenizer.add_tokens([*COORDINATES, *(w for w in WORDS if len(tokenizer.encode(w).ids) > 1)])
  return tokenizer


def task_texts(seed: int = 0, problems: int = 12_000) -> Iterable[str]:
  """What the tasks say, so that their phrases get short encodings."""
  rng = np.random.default_rng(seed)
  for _ in range(problems):
    problem = reasoning.make(rng)
    yield problem.question
    for style, language in (("long", "en"), ("long", "zh"), ("short", "en"), ("short", "zh")):
      yield " " + reasoning.HINTS[style][language]
    element = {
        "role": list(_ROLES)[rng.integers(len(_ROLES))],
        "color": ["", *screens.COLOR_NAMES][rng.integers(len(screens.COLOR_NAMES) + 1)],
        "state": ["", "", "on", "off", "checked", "selected"][rng.integers(6)], "box": [0.1, 0.1, 0.2, 0.2], "text": "x"}
    for language in ("en", "zh"):
      yield " " + screens.name(element, language)
      for ask in screens.PHRASES.values():
        yield ask[language]


def main(argv):
  del argv
  documents = sources.read_shard(flags.FLAGS.text)
  prose = [documents[i].text for i in range(len(documents))]
  extra = [pathlib.Path(path).read_text("utf-8") for path in flags.FLAGS.extra]
  tokenizer = train(prose, flags.FLAGS.vocab_size, [*task_texts(), *extra])
  output = pathlib.Path(flags.FLAGS.output)
  output.write_text(tokenizer.to_str())
  print(f"{output}: {tokenizer.get_vocab_size()} tokens")


if __name__ == "__main__":
  flags.DEFINE_string("output", None, "The tokenizer.json to write.")
  flags.DEFINE_string("text", "assets/text-train.array_record", "Shard of documents.")
  flags.DEFINE_list("extra", [], "More text files to learn from, e.g. phrases that shall be short.")
  flags.DEFINE_integer("vocab_size", 1024, "Tokens before the added ones, the special ones included.")
  door.run(main, required=("output",))
