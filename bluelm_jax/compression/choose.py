"""What a student keeps of its teacher, by importance.

Shapes: L layers, N = 2 L + 1 norms, D width, K KV heads, H query heads, F MLP width; all of the student.
"""

from typing import NamedTuple

import numpy as np

from bluelm_jax.compression.importance import Importance
from bluelm_jax.models.config import DecoderConfig


class Kept(NamedTuple):
  """Rising indices into the teacher.

  Attributes:
    layers: [L].
    width: [D], hidden channels, the same everywhere.
    neurons: [L, F], of each kept layer.
    groups: [L, K], KV heads.
    heads: [L, H], query heads, each with its KV head.
    gains: [N], what the scales of the norms are multiplied by; see `gains`.
  """

  layers: np.ndarray
  width: np.ndarray
  neurons: np.ndarray
  groups: np.ndarray
  heads: np.ndarray
  gains: np.ndarray


def choose(importance: Importance, teacher: DecoderConfig, student: DecoderConfig) -> Kept:
  """Channels by the sum of their scores over all norms; neurons and heads in every layer for itself; KV groups whole, by the L2 norm
  of their query heads' scores, and of a group's query heads the highest where the student's groups are smaller."""
  kept = best(importance.layers, student.num_layers)
  width = best(importance.width.sum(axis=0), student.embed_dim)
  neurons = np.stack([best(importance.neurons[layer], student.mlp_dim) for layer in kept])
  of_group, keep_of_group = (c.num_heads // c.num_kv_heads for c in (teacher, student))
  groups, heads = [], []
  for layer in kept:
    scores_KG = importance.heads[layer].reshape(teacher.num_kv_heads, of_group)
    groups.append(best(np.linalg.norm(scores_KG, axis=1), student.num_kv_heads))
    heads.append(np.concatenate([group * of_group + best(scores_KG[group], keep_of_group) for group in groups[-1]]))
  count = teacher.num_layers
  norms = np.concatenate([kept, count + kept, [2 * count]])
  return Kept(kept, width, neurons, np.stack(groups), np.stack(heads), gains(importance.share[norms], width))


def best(scores: np.ndarray, count: int) -> np.ndarray:
  """Rising indices of the `count` highest scores; of equal ones the first.

  Scores that agree to 16 bits are equal, so that rounding in float32, which differs with the number of devices, seldom decides.
  """
  mantissa, exponent = np.frexp(scores)
  rounded = np.ldexp(np.round(mantissa * 2**16), exponent - 16)
  return np.sort(np.argsort(-rounded, kind="stable")[:count])


def gains(share_ND: np.ndarray, width: np.ndarray) -> np.ndarray:
  """How much smaller norms divide by over the kept channels, float64 [N]: sqrt(kept share of the squares * channels / kept channels).

  x_i / rms(x) keeps its value for a channel i that stays if the scale grows by rms(kept) / rms(all). Where the removed
  channels are zero that is sqrt(D / D') for every token, and exact with eps' = eps D / D'; elsewhere it is right on average.
  """
  removed = np.setdiff1d(np.arange(share_ND.shape[1]), width)
  share = 1.0 - share_ND[:, removed].sum(axis=1)  # not the sum of what stays: exactly 1 where zeros go
  return np.sqrt(np.maximum(share, 0.0) * share_ND.shape[1] / len(width))
