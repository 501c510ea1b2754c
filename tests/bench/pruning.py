"""Held-out loss of a pruned teacher before any healing: by importance, at random, and by what carries most.

  python -m bluelm_jax.train --config=configs/stages/text.py --config.preset=miniature_teacher --config.steps=150 --workdir=TEACHER
  python -m bluelm_jax.train --config=configs/stages/prune.py --config.init_from=TEACHER --workdir=PRUNED
  python -m tests.bench.pruning TEACHER PRUNED
"""

import dataclasses
import json
import pathlib
import sys

import jax.numpy as jnp
import numpy as np

from bluelm_jax.compression import choose
from bluelm_jax.compression import prune
from bluelm_jax.compression.importance import Importance
from bluelm_jax.data.chat import ChatFormat
from bluelm_jax.data.tokenizer import Tokenizer
from bluelm_jax.evaluation import text
from bluelm_jax.interop import load
from bluelm_jax.models import presets
from bluelm_jax.models import serialize
from bluelm_jax.training import optimizer
from bluelm_jax.training import pruning
from tests.bench import machine

_AXES = {
    "all": ("num_layers", "embed_dim", "mlp_dim", "num_heads", "num_kv_heads"), "layers": ("num_layers",), "hidden channels": ("embed_dim",),
    "MLP neurons": ("mlp_dim",), "KV groups": ("num_heads", "num_kv_heads")}
_SEEDS = 3


def loss(config, tensors) -> float:
  """Bits per byte of the held-out shard, Chinese and English together."""
  params = optimizer.merge({p: jnp.asarray(t.read()) for p, t in tensors.items()}, {})
  chat = ChatFormat(Tokenizer(), None, 1)
  sums = np.concatenate(list(text.bits_per_byte(serialize.build(config), params, chat, "assets/text-test.array_record").values()))
  return sums[:, 0].sum() / sums[:, 1].sum()


def random(scores: Importance, seed: int) -> Importance:
  rng = np.random.default_rng(seed)
  return Importance(*(rng.random(x.shape) for x in scores))._replace(share=scores.share)


def main(teacher_directory: str, pruned_directory: str):
  teacher, tensors = load.open_checkpoint(teacher_directory)
  scores = json.loads((pathlib.Path(pruned_directory) / pruning.LINEAGE).read_text())["scores"]
  scores = Importance(**{k: np.array(v) for k, v in scores.items()})
  lowest = Importance(*(-x for x in scores))._replace(share=scores.share)
  small = presets.miniature().decoder
  print(f"{machine.line()}\nteacher: {loss(teacher, tensors):.3f} bits per byte\n")
  print(f"| pruned | by importance | norms not scaled | at random, {_SEEDS} seeds | what carries least kept |\n|---|---|---|---|---|")
  for name, fields in _AXES.items():
    student = dataclasses.replace(teacher, **{f: getattr(small, f) for f in fields})
    cut = lambda kept: loss(student, prune.prune(tensors, teacher, student, kept))
    kept, *others = (choose.choose(s, teacher, student) for s in (scores, lowest, *(random(scores, i) for i in range(_SEEDS))))
    worst, *drawn = map(cut, others)
    plain = cut(kept._replace(gains=np.ones_like(kept.gains)))
    print(f"| {name} | {cut(kept):.3f} | {plain:.3f} | {np.mean(drawn):.3f} ({min(drawn):.3f} to {max(drawn):.3f}) | {worst:.3f} |", flush=True)


if __name__ == "__main__":
  main(*sys.argv[1:])
