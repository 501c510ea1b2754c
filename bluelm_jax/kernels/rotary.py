"""Rotary position embeddings, with the context-extension rules HuggingFace configs name.

Shapes: B batch, S sequence, H heads, D head size.
"""

import dataclasses
import math

import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True)
class RopeScaling:
  """How inverse frequencies change for a longer context.

  Attributes:
    kind: "yarn" (arXiv 2309.00071), "llama3" or "linear".
    factor: context length after / before.
    original_context: the context length of the unscaled model, in tokens.
    beta_fast, beta_slow: YaRN's ramp, in rotations over the original context.
    attention_factor: multiplies cos and sin; None means YaRN's 0.1 ln(factor) + 1.
    low_freq_factor, high_freq_factor: Llama 3's ramp.
    truncate: YaRN rounds the ends of its ramp to whole dimensions.
  """

  kind: str
  factor: float
  original_context: int
  beta_fast: float = 32.0
  beta_slow: float = 1.0
  attention_factor: float | None = None
  low_freq_factor: float = 1.0
  high_freq_factor: float = 4.0
  truncate: bool = True

  def __post_init__(self):
    if self.kind not in ("yarn", "llama3", "linear"):
      raise ValueError(f"rope scaling {self.kind!r} is unknown; use yarn, llama3 or linear")


def inverse_frequencies(head_dim: int, theta: float, scaling: RopeScaling | None) -> tuple[np.ndarray, float]:
  """Returns (inv_freq float32 [head_dim / 2], factor on cos and sin)."""
  # In float32 throughout, as the models that bring their weights were trained.
  exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
  inv_freq = np.float32(1.0) / np.float32(theta) ** exponents
  if scaling is None:
    return inv_freq.astype(np.float32), 1.0
  if scaling.kind == "linear":
    return (inv_freq / scaling.factor).astype(np.float32), 1.0
  if scaling.kind == "llama3":
    return _llama3(inv_freq, scaling).astype(np.float32), 1.0
  keep = 1.0 - _yarn_ramp(head_dim, theta, scaling)
  inv_freq = inv_freq * keep + inv_freq / scaling.factor * (1.0 - keep)
  factor = scaling.attention_factor
  if factor is None:
    factor = 0.1 * math.log(scaling.factor) + 1.0 if scaling.factor > 1 else 1.0
  return inv_freq.astype(np.float32), factor


def _yarn_ramp(head_dim: int, theta: float, s: RopeScaling) -> np.ndarray:
  """0 where a dimension turns often (kept), 1 where it is interpolated (YaRN, eq. 13)."""

  def dimension(rotations):  # the dimension that turns `rotations` times over the context
    return head_dim * math.log(s.original_context / (rotations * 2 * math.pi)) / (2 * math.log(theta))

  low, high = dimension(s.beta_fast), dimension(s.beta_slow)
  if s.truncate:
    low, high = math.floor(low), math.ceil(high)
  low, high = max(low, 0), min(high, head_dim - 1)
  high = high + 0.001 if low == high else high
  return np.clip((np.arange(head_dim // 2) - low) / (high - low), 0.0, 1.0)


def _llama3(inv_freq: np.ndarray, s: RopeScaling) -> np.ndarray:
  wavelength = 2 * math.pi / inv_freq
  smooth = (s.original_context / wavelength - s.low_freq_factor) / (s.high_freq_factor - s.low_freq_factor)
  smooth = np.clip(smooth, 0.0, 1.0)
  return (1 - smooth) * inv_freq / s.factor + smooth * inv_freq


def rotary_table(positions_BS, head_dim: int, theta: float, scaling: RopeScaling | None = None):
  """Returns float32 (cos, sin), each [B, S, 1, head_dim / 2], for int positions [B, S]."""
  inv_freq, factor = inverse_frequencies(head_dim, theta, scaling)
  angle_BSF = positions_BS[..., None].astype(jnp.float32) * inv_freq
  return (jnp.cos(angle_BSF) * factor)[:, :, None], (jnp.sin(angle_BSF) * factor)[:, :, None]


def apply_rotary(x_BSHD, table):
  """Rotates the pairs (i, i + D/2) of x [B, S, H, D]; computed in at least float32, returned in x's dtype."""
  cos, sin = table
  first, second = jnp.split(x_BSHD.astype(jnp.promote_types(x_BSHD.dtype, jnp.float32)), 2, axis=-1)
  rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
  return rotated.astype(x_BSHD.dtype)
