"""Attention over a sequence that is split across the ranks of a mesh axis; called inside shard_map.

`ring` keeps the queries and passes keys and values around (Ring Attention, arXiv 2310.01889); `all_gather`
collects all keys and values first; `ulysses` trades the split of the sequence for one of the heads
(DeepSpeed-Ulysses, arXiv 2309.14509). The rows may lie in any order: positions and segment ids travel with them.

Shapes: B batch, Q local queries, S local keys, H heads, K key-value heads, D head size, V head size of values.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from bluelm_jax.kernels.attention import api
from bluelm_jax.kernels.attention import masks

STRATEGIES = ("ring", "all_gather", "ulysses")


def attention(q_BQHD, k_BSKD, v_BSKV, mask: masks.Mask, *, axis: str, strategy: str, scale: float, implementation: str = "auto"):
  """(out [B, Q, H, V], log-sum-exp [B, Q, H]) of this rank's queries over the keys of all ranks on `axis`.

  Args:
    mask: of this rank's queries and keys.
    strategy: a name of STRATEGIES.

  Raises:
    ValueError: an unknown strategy, or heads that `ulysses` cannot divide over the ranks.
  """
  if strategy not in STRATEGIES:
    raise ValueError(f"context_parallel {strategy!r} is unknown; use {', '.join(STRATEGIES)}")
  if strategy == "ring":
    name = api.choose(implementation, q_BQHD, k_BSKD, v_BSKV)
    return _ring(q_BQHD, k_BSKD, v_BSKV, mask, scale, axis, "xla" if name == "reference" else name)
  if strategy == "all_gather":
    whole = functools.partial(jax.lax.all_gather, axis_name=axis, axis=1, tiled=True)
    mask = dataclasses.replace(mask, k_positions=_each(whole, mask.k_positions), k_segment_ids=_each(whole, mask.k_segment_ids))
    return api.apply(q_BQHD, whole(k_BSKD), whole(v_BSKV), mask, scale, implementation)
  return _ulysses(q_BQHD, k_BSKD, v_BSKV, mask, scale, axis, implementation)


def _ulysses(q, k, v, mask, scale, axis, implementation):
  ranks = jax.lax.axis_size(axis)
  if k.shape[2] % ranks:
    raise ValueError(f"ulysses splits {k.shape[2]} key-value heads over {ranks} context ranks; use ring or all_gather, or fewer ranks")
  whole = functools.partial(jax.lax.all_gather, axis_name=axis, axis=1, tiled=True)
  some_heads = functools.partial(jax.lax.all_to_all, axis_name=axis, split_axis=2, concat_axis=1, tiled=True)
  all_heads = functools.partial(jax.lax.all_to_all, axis_name=axis, split_axis=1, concat_axis=2, tiled=True)
  mask = jax.tree.map(whole, mask)
  out, lse = api.apply(some_heads(q), some_heads(k), some_heads(v), mask, scale, implementation)
  return all_heads(out), all_heads(lse)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def _ring(q, k, v, mask, scale, axis, name):
  return _ring_forward(q, k, v, mask, scale, axis, name)[0]


def _ring_forward(q, k, v, mask, scale, axis, name):
  """Hop by hop: while the kernel works on the keys at hand, they are already on their way to the next rank.

  A hop's result is combined at the start of the next, before a barrier: so that it is the kernel, and not the
  sums after it, that the compiler lays beside the transfer. There is no `cond` around a hop with nothing to
  see, as transfers are not laid beside conditionals; its kernel computes at most one block a tile.
  """
  wide = jnp.promote_types(q.dtype, jnp.float32)

  def hop(carry, _):
    keys, whole, part = carry
    coming = _pass_on(keys, axis)
    whole, (k, v, *side) = jax.lax.optimization_barrier((_combine(*whole, *part), keys))
    return (coming, whole, api.backend(name).forward(q, k, v, _with_keys(mask, side), scale)), None

  nothing = lambda dtype: (jnp.zeros((*q.shape[:3], v.shape[-1]), dtype), jnp.full(q.shape[:3], -jnp.inf, wide))
  keys = (k, v, mask.k_positions, mask.k_segment_ids)
  (_, whole, part), _ = jax.lax.scan(hop, (keys, nothing(wide), nothing(v.dtype)), length=jax.lax.axis_size(axis))
  out, lse = _combine(*whole, *part)
  out, lse = api.named(out.astype(v.dtype), lse)
  return (out, lse), (q, k, v, mask, out, lse)


def _ring_backward(scale, axis, name, residuals, cotangents):
  """As forward; the gradients of travelling keys and values follow them one hop behind, so that their transfer, too, is hidden."""
  q, k, v, mask, out, lse = residuals
  d_out, d_lse = cotangents
  lse, delta = api.finite(lse), api.delta(out, d_out, d_lse)
  add = lambda sums, parts: tuple(a + b for a, b in zip(sums, parts))

  def hop(carry, _):
    keys, (dq, *d_keys), parts = carry
    coming = _pass_on(keys, axis)
    (dq, *d_keys), (k, v, *side) = jax.lax.optimization_barrier((add((dq, *d_keys), parts), keys))
    d_coming = _pass_on(d_keys, axis)
    parts = api.backend(name).backward(q, k, v, _with_keys(mask, side), scale, lse, delta, d_out)
    return (coming, (dq, *d_coming), parts), None

  keys = (k, v, mask.k_positions, mask.k_segment_ids)
  sums = tuple(jnp.zeros(x.shape, jnp.promote_types(q.dtype, jnp.float32)) for x in (q, k, v))
  parts = tuple(jnp.zeros_like(x) for x in (q, k, v))
  (_, sums, parts), _ = jax.lax.scan(hop, (keys, sums, parts), length=jax.lax.axis_size(axis))
  dq, *d_keys = add(sums, parts)
  dk, dv = _pass_on(d_keys, axis)  # the last rank of their round hands them home
  return dq.astype(q.dtype), dk.astype(k.dtype), dv.astype(v.dtype), None


_ring.defvjp(_ring_forward, _ring_backward)


def _pass_on(tree, axis):
  ranks = jax.lax.axis_size(axis)
  return jax.lax.ppermute(tree, axis, [(i, (i + 1) % ranks) for i in range(ranks)])


def _combine(out, lse, more_out, more_lse):
  """Two partial softmaxes over different keys as one."""
  top = jnp.maximum(lse, more_lse)
  top = jnp.where(jnp.isneginf(top), 0.0, top)
  share, more_share = jnp.exp(lse - top), jnp.exp(more_lse - top)
  total = share + more_share
  safe = jnp.where(total > 0, total, 1.0)
  out = (out * share[..., None] + more_out * more_share[..., None]) / safe[..., None]
  return out, jnp.where(total > 0, top + jnp.log(safe), -jnp.inf)


def _with_keys(mask, side):
  return dataclasses.replace(mask, k_positions=side[0], k_segment_ids=side[1])


def _each(function, x):
  return None if x is None else function(x)
