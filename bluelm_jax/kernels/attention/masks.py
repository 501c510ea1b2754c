"""Who sees whom: the one description of attention masks, and what it means for blocks.

Shapes: B batch, Q queries, S keys, I query blocks, J key blocks.
"""

import dataclasses

import jax
import jax.numpy as jnp

NONE, PARTIAL, FULL = 0, 1, 2  # what a block of queries sees of a block of keys

_TOP = 2**31 - 1
# Ids of slots that only fill up a block: no query or key of the caller carries them.
_QUERY_FILL, _KEY_FILL = _TOP - 2, _TOP - 1


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Mask:
  """A query sees a key of its own segment (equal ids) which, if `causal`, does not come after it.

  Attributes:
    q_positions, k_positions: int32 [B, Q], [B, S]; None unless causal.
    q_segment_ids, k_segment_ids: int32, the same shapes, below 2^31 - 3; None is one segment.
    causal: by position, not by index, so rows may be permuted.
    window: keeps only keys with q_position - k_position < window.
  """

  q_positions: jax.Array | None
  k_positions: jax.Array | None
  q_segment_ids: jax.Array | None
  k_segment_ids: jax.Array | None
  causal: bool = dataclasses.field(metadata={"static": True})
  window: int | None = dataclasses.field(metadata={"static": True})

  @property
  def trivial(self) -> bool:
    """Every query sees every key."""
    return not self.causal and self.q_segment_ids is None


def make(q_positions, k_positions, q_segment_ids=None, k_segment_ids=None, *, causal: bool, window: int | None = None) -> Mask:
  """A Mask from what callers hold.

  Raises:
    ValueError: segment ids given on one side only, positions missing, or a window without `causal` or below 1.
  """
  if (q_segment_ids is None) != (k_segment_ids is None):
    raise ValueError("segment ids must be given for queries and keys, or for neither")
  if window is not None and not causal:
    raise ValueError("a sliding window needs causal=True")
  if window is not None and window < 1:
    raise ValueError(f"a sliding window of {window} sees nothing; use at least 1")
  if causal and (q_positions is None or k_positions is None):
    raise ValueError("causal attention needs positions; pass q_positions and k_positions, or causal=False")
  if not causal:
    q_positions = k_positions = None
  arrays = [x if x is None else jnp.asarray(x, jnp.int32) for x in (q_positions, k_positions, q_segment_ids, k_segment_ids)]
  return Mask(*arrays, causal, window)


def visible(mask: Mask):
  """bool [B, Q, S], or None when everything is seen."""
  return pairs(
      *(None if x is None else x[:, :, None] for x in (mask.q_positions, mask.q_segment_ids)),
      *(None if x is None else x[:, None, :] for x in (mask.k_positions, mask.k_segment_ids)), mask.causal, mask.window)


def pairs(q_positions, q_segment_ids, k_positions, k_segment_ids, causal, window):
  """The rule itself, on arrays that broadcast against each other; None when everything is seen."""
  seen = None if q_segment_ids is None else q_segment_ids == k_segment_ids
  if causal:
    after = q_positions >= k_positions
    seen = after if seen is None else seen & after
    if window is not None:
      seen &= q_positions - k_positions < window
  return seen


def fill(mask: Mask, queries: int, keys: int) -> Mask:
  """The mask of rows lengthened by `queries` and `keys` slots at their ends that see and show nothing."""
  if queries == keys == 0:
    return mask
  q_ids, k_ids = mask.q_segment_ids, mask.k_segment_ids
  if q_ids is None and not mask.causal:
    raise ValueError("only a mask with positions or segment ids can be filled up; give it segment ids first")
  pad = lambda x, n, value: None if x is None else jnp.pad(x, ((0, 0), (0, n)), constant_values=value)
  # Without segment ids the keys lie after every query.
  return dataclasses.replace(
      mask, q_positions=pad(mask.q_positions, queries, 0), k_positions=pad(mask.k_positions, keys, _TOP),
      q_segment_ids=pad(q_ids, queries, _QUERY_FILL), k_segment_ids=pad(k_ids, keys, _KEY_FILL))


def with_segments(mask: Mask, batch: int, queries: int, keys: int) -> Mask:
  """The same mask, with segment ids in any case."""
  if mask.q_segment_ids is not None:
    return mask
  ids = lambda n: jnp.zeros((batch, n), jnp.int32)
  return dataclasses.replace(mask, q_segment_ids=ids(queries), k_segment_ids=ids(keys))


def block_classes(mask: Mask, q_block: int, k_block: int):
  """int32 [B, I, J] of NONE, PARTIAL, FULL, from the extremes of positions and segment ids.

  NONE and FULL are certain; a PARTIAL block may turn out to be either. Lengths are multiples of the blocks.
  """
  assert not mask.trivial
  q_rows = lambda x: x.reshape(x.shape[0], -1, 1, q_block)  # [B, I, 1, q], against keys [B, 1, J, s]
  k_rows = lambda x: x.reshape(x.shape[0], 1, -1, k_block)
  some, every = True, True
  if mask.q_segment_ids is not None:
    # Padding (id 0) stands at the end of rows: as the largest id it leaves the other ranges tight.
    q_ids, k_ids = (jnp.where(x == 0, _TOP, x) for x in (q_rows(mask.q_segment_ids), k_rows(mask.k_segment_ids)))
    q_low, q_high, k_low, k_high = q_ids.min(-1), q_ids.max(-1), k_ids.min(-1), k_ids.max(-1)
    some = (q_low <= k_high) & (k_low <= q_high)
    every = (q_low == q_high) & (k_low == k_high) & (q_low == k_low)
  if mask.causal:
    q_positions, k_positions = q_rows(mask.q_positions), k_rows(mask.k_positions)
    q_first, q_last, k_first, k_last = q_positions.min(-1), q_positions.max(-1), k_positions.min(-1), k_positions.max(-1)
    some &= q_last >= k_first
    every &= q_first >= k_last
    if mask.q_segment_ids is not None:
      # Where only the queries' last segment can meet the keys' first, their positions in it decide.
      q_end = jnp.where(q_ids == q_high[..., None], q_positions, -_TOP).max(-1)
      k_begin = jnp.where(k_ids == k_low[..., None], k_positions, _TOP).min(-1)
      some &= (q_high > k_low) | (q_end >= k_begin)
    if mask.window is not None:
      some &= q_first - k_last < mask.window
      every &= q_last - k_first < mask.window
  return jnp.where(some, jnp.where(every, FULL, PARTIAL), NONE).astype(jnp.int32)


def visible_blocks(classes_BIJ):
  """(order [B, I, J], counts [B, I, 2]): each block's partners, FULL before PARTIAL before NONE; how many are FULL, how many seen."""
  order = jnp.argsort(-classes_BIJ, axis=-1, stable=True)
  counts = jnp.stack([jnp.sum(classes_BIJ == FULL, axis=-1), jnp.sum(classes_BIJ != NONE, axis=-1)], axis=-1)
  return order.astype(jnp.int32), counts.astype(jnp.int32)
