"""The one attention call of the project.

Shapes: B batch, Q queries, S keys, H heads, K key-value heads (H a multiple of K), D head size.
"""

from bluelm_jax.kernels.attention import masks
from bluelm_jax.kernels.attention import reference


def attention(
    q_BQHD, k_BSKD, v_BSKD, *, q_positions, k_positions,
    q_segment_ids=None, k_segment_ids=None, causal=True, window=None, implementation="auto",
):
  """Softmax attention [B, Q, H, D] in the dtype of v.

  Args:
    q_positions, k_positions: int [B, Q] and [B, S]; causality is by position, not by index.
    q_segment_ids, k_segment_ids: int, same shapes; attention stays inside equal ids.
    implementation: "auto" or "reference".

  Raises:
    ValueError: shapes that do not fit, or an unknown implementation.
  """
  H, K = q_BQHD.shape[2], k_BSKD.shape[2]
  if H % K:
    raise ValueError(f"{H} query heads do not divide into {K} key-value heads; make heads a multiple of kv heads")
  if implementation not in ("auto", "reference"):
    raise ValueError(f"attention implementation {implementation!r} is unknown; use auto or reference")
  mask = masks.visible(q_positions, k_positions, q_segment_ids, k_segment_ids, causal=causal, window=window)
  return reference.attention(q_BQHD, k_BSKD, v_BSKD, mask)
