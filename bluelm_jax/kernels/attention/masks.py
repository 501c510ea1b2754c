"""Who sees whom: the one builder of attention masks.

Shapes: B batch, Q queries, K keys.
"""

import jax.numpy as jnp


def visible(q_positions_BQ, k_positions_BK, q_segment_ids_BQ=None, k_segment_ids_BK=None, *, causal: bool, window: int | None = None):
  """Returns bool [B, Q, K], True where a query may see a key, or None when everything is seen.

  A key is seen when it lies in the query's segment (equal ids), and, if `causal`, not after it by
  position; `window` w keeps only keys with q_position - k_position < w.

  Raises:
    ValueError: segment ids given on one side only, or a window without `causal`.
  """
  if (q_segment_ids_BQ is None) != (k_segment_ids_BK is None):
    raise ValueError("segment ids must be given for queries and keys, or for neither")
  if window is not None and not causal:
    raise ValueError("a sliding window needs causal=True")
  mask = None
  if q_segment_ids_BQ is not None:
    mask = q_segment_ids_BQ[:, :, None] == k_segment_ids_BK[:, None, :]
  if causal:
    distance = q_positions_BQ[:, :, None] - k_positions_BK[:, None, :]
    seen = distance >= 0
    if window is not None:
      seen &= distance < window
    mask = seen if mask is None else mask & seen
  return mask
