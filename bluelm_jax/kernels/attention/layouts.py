"""Orders of a row's tokens that give every rank of a split sequence the same attention work.

Rank r of c holds the r-th part of a row. In the natural order the last rank of a causal row sees nearly twice
the mean; `zigzag` pairs the head of a row with its tail, which is exact for one causal document; `striped` deals
stripes by the work they make, which also balances packed rows, without breaking up the kernel's blocks.

Shapes: B batch, S sequence, N stripes of a row.
"""

import jax
import jax.numpy as jnp

from bluelm_jax.kernels.attention import masks

LAYOUTS = ("none", "zigzag", "striped")
STRIPE = 512  # tokens, a kernel's block


def order(layout: str, positions_BS, segment_ids_BS, ranks: int):
  """int32 [B, S]: the tokens of each row in the order the ranks hold them.

  Raises:
    ValueError: an unknown layout, or a row that does not divide into the ranks' parts.
  """
  B, S = positions_BS.shape
  if layout not in LAYOUTS:
    raise ValueError(f"layout {layout!r} is unknown; use {', '.join(LAYOUTS)}")
  pieces = ranks if layout == "none" else 2 * ranks
  if S % pieces:
    raise ValueError(f"rows of {S} tokens do not divide into {pieces} parts for {ranks} context ranks; change data.length")
  if layout == "none":
    return jnp.broadcast_to(jnp.arange(S, dtype=jnp.int32), (B, S))
  if layout == "zigzag":
    parts = jnp.arange(S, dtype=jnp.int32).reshape(2, ranks, -1)
    return jnp.broadcast_to(jnp.stack([parts[0], parts[1, ::-1]], axis=1).reshape(S), (B, S))
  stripe = next(n for n in range(min(STRIPE, S // (2 * ranks)), 0, -1) if S % (n * ranks) == 0)
  dealt_BN = _deal(block_work(positions_BS, segment_ids_BS, stripe), ranks)
  return (dealt_BN[..., None] * stripe + jnp.arange(stripe)).reshape(B, S)


def block_work(positions_BS, segment_ids_BS, block: int):
  """int32 [B, N]: how many key blocks each block of queries sees in a causal packed row."""
  mask = masks.make(positions_BS, positions_BS, segment_ids_BS, segment_ids_BS, causal=True)
  return jnp.sum(masks.block_classes(mask, block, block) != masks.NONE, axis=-1)


def permute(x, order_BS):
  """[B, S, ...] in the given order."""
  return jnp.take_along_axis(x, order_BS.reshape(*order_BS.shape, *[1] * (x.ndim - 2)), axis=1)


def undo(x, order_BS):
  """The inverse of `permute`."""
  return permute(x, jnp.argsort(order_BS, axis=1))


def _deal(work_BN, ranks):
  """int32 [B, N]: stripes grouped by rank, each rank with as many; the heaviest goes first, to the least loaded."""
  N = work_BN.shape[1]
  hand = N // ranks

  def row(work_N):
    def give(carry, stripe):
      load, cards, owner = carry
      rank = jnp.argmin(jnp.where(cards < hand, load, jnp.iinfo(jnp.int32).max))
      return (load.at[rank].add(work_N[stripe]), cards.at[rank].add(1), owner.at[stripe].set(rank)), None

    start = jnp.zeros(ranks, jnp.int32), jnp.zeros(ranks, jnp.int32), jnp.zeros(N, jnp.int32)
    (_, _, owner), _ = jax.lax.scan(give, start, jnp.argsort(-work_N, stable=True))
    return jnp.argsort(owner, stable=True)  # inside a rank in the order of the row

  return jax.vmap(row)(work_BN.astype(jnp.int32)).astype(jnp.int32)
