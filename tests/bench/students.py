"""Bits per byte of text models on the held-out shard, and how the first differs from each other, with 95 % intervals.

The twins of a distilled student, which see the same batches and no teacher, from random weights and from the pruned ones:

  python -m bluelm_jax.train --config=configs/stages/distil.py --config.objective=lm --workdir=SCRATCH
  python -m bluelm_jax.train --config=configs/stages/distil_decay.py --config.objective=lm --config.init_from=SCRATCH --workdir=TWIN
  python -m bluelm_jax.train --config=configs/stages/distil.py --config.objective=lm --config.init_from=PRUNED --workdir=CUT
  python -m bluelm_jax.train --config=configs/stages/distil_decay.py --config.objective=lm --config.init_from=CUT --workdir=UNTAUGHT
  python -m tests.bench.students STUDENT TWIN UNTAUGHT TEACHER PRUNED
"""

import pathlib
import sys

import numpy as np

from bluelm_jax.evaluation import statistics
from bluelm_jax.evaluation import text
from bluelm_jax.inference.conversation import Speaker
from tests.bench import machine


def sums(directory: str) -> dict[str, np.ndarray]:
  """Language -> (bits, bytes) of every document."""
  speaker = Speaker(pathlib.Path(directory))
  return text.bits_per_byte(speaker.model, speaker.params, speaker.chat, "assets/text-test.array_record")


def main(*directories: str):
  print(f"{machine.line()}\n\n| | language | bits per byte | the first less this |\n|---|---|---|---|")
  found = {d: sums(d) for d in directories}
  for directory, by_language in found.items():
    for language, own in by_language.items():
      first = found[directories[0]][language]
      low, high = statistics.rate_interval(first, own, draws=4000)
      print(f"| {directory} | {language} | {statistics.rate(own):.3f} | {statistics.rate(first) - statistics.rate(own):.3f} [{low:.3f}, {high:.3f}] |", flush=True)


if __name__ == "__main__":
  main(*sys.argv[1:])
