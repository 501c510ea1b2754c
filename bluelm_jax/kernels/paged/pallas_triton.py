"""Paged attention for GPUs (Pallas lowered through Triton).

A program holds a block of one key head's queries of a row and walks its part of the row's keys, up to the last position
of these queries. Where programs are few, as in decoding, a row's keys are split over several, whose outputs are joined
afterwards by their log-sum-exps (flash-decoding, https://crfm.stanford.edu/2023/10/12/flashdecoding.html).

Shapes: R rows, Q queries of a row, H heads, K key-value heads, G = H / K, N = G Q queries of a key head, those of a position
side by side, I blocks of n of them, M pages of a table, X pages, P slots of a page, Z splits of the keys, t keys of a step,
D head size, d the same up to a power of two.
"""

import functools
import math
import typing

import einops
import jax
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
import jax.numpy as jnp

from bluelm_jax.kernels.attention import api
from bluelm_jax.kernels.attention import pallas_triton

_FAR = -1e30  # below every score, and finite, so that an unseen score, -inf, never meets another infinity
_LOG2E = math.log2(math.e)


class Sizes(typing.NamedTuple):
  """The queries of a program, the keys of a step, and how Triton spreads them."""

  queries: int
  keys: int
  warps: int
  stages: int


# By head size, of 16 bits. Estimates from shared memory and registers, not tuned on a chip.
_SIZES = {64: Sizes(64, 128, 4, 3), 128: Sizes(64, 64, 4, 3), 256: Sizes(32, 32, 4, 2)}


def attention(q_RQHD, k_XKPD, v_XKPD, tables_RM, positions_RQ, scales, scale):
  (R, Q, H, D), (X, K, P, _), M = q_RQHD.shape, k_XKPD.shape, tables_RM.shape[1]
  G, N, d = H // K, H // K * Q, pallas_triton.up(D)
  sizes = _sizes(d, N, q_RQHD.dtype)
  n, I = sizes.queries, pl.cdiv(N, sizes.queries)
  Z = min(pl.cdiv(M * P, sizes.keys), pl.cdiv(2 * api.target_processors(), R * I * K))  # programs for every processor, twice
  q_RKND = einops.rearrange(q_RQHD, "r q (k g) d -> r k (q g) d", k=K)
  positions = jnp.pad(jnp.repeat(positions_RQ, G, axis=1), ((0, 0), (0, I * n - N)), constant_values=-1)
  lengths_RI = positions.reshape(R, I, n).max(-1) + 1

  # Views for a program (block of a row's queries, key head, split).
  row, block = (lambda i: lax.div(i, jnp.int32(I))), (lambda i: lax.rem(i, jnp.int32(I)))
  pages, lines = pl.BlockSpec((X, None, P, d), lambda i, k, z: (0, k, 0, 0)), pl.BlockSpec((X, None, P), lambda i, k, z: (0, k, 0))
  out_ZRKND, lse_ZRKN = pl.pallas_call(
      functools.partial(_kernel, keys=sizes.keys, queries=N, blocks=I, size=D, scale=scale), grid=(R * I, K, Z),
      in_specs=[
          pl.BlockSpec((None, M), lambda i, k, z: (row(i), 0)), pl.BlockSpec((None, 1), lambda i, k, z: (row(i), block(i))),
          pl.BlockSpec((None, n), lambda i, k, z: (row(i), block(i))),
          pl.BlockSpec((None, None, n, d), lambda i, k, z: (row(i), k, block(i), 0)), pages, pages, [lines] * len(scales or ())],
      out_specs=[
          pl.BlockSpec((None, None, None, n, d), lambda i, k, z: (z, row(i), k, block(i), 0)),
          pl.BlockSpec((None, None, None, n), lambda i, k, z: (z, row(i), k, block(i)))],
      out_shape=[
          jax.ShapeDtypeStruct((Z, R, K, N, D), q_RQHD.dtype if Z == 1 else jnp.float32), jax.ShapeDtypeStruct((Z, R, K, N), jnp.float32)],
      compiler_params=plgpu.CompilerParams(num_warps=sizes.warps, num_stages=sizes.stages),
      interpret=pallas_triton.interpreted(), name="paged_attention",
  )(tables_RM, lengths_RI, positions, q_RKND, k_XKPD, v_XKPD, list(scales or ()))
  out_RKND = out_ZRKND[0] if Z == 1 else _join(out_ZRKND, lse_ZRKN).astype(q_RQHD.dtype)
  return einops.rearrange(out_RKND, "r k (q g) d -> r q (k g) d", q=Q)


def _join(out_ZRKND, lse_ZRKN):
  """The parts' outputs weighted by their shares of the softmax; the log-sum-exps are of base 2, _FAR where nothing was seen."""
  weights = jnp.exp2(lse_ZRKN - lse_ZRKN.max(0))
  return jnp.einsum("zrkn,zrknd->rknd", weights / weights.sum(0), out_ZRKND)


def _kernel(
    table_ref, length_ref, positions_ref, q_ref, k_ref, v_ref, scale_refs, out_ref, lse_ref, *, keys, queries, blocks, size, scale,
):
  n, d = q_ref.shape
  P, length, columns = k_ref.shape[1], length_ref[0], jnp.arange(d, dtype=jnp.int32)[None]
  q_start = lax.rem(pl.program_id(0), jnp.int32(blocks)) * n
  q_nd = pallas_triton.tile(q_ref, q_start, queries, size)
  positions = positions_ref[...]
  share = pl.cdiv(pl.cdiv(length, keys), pl.num_programs(2))  # steps of this program; the last programs may have none
  first = pl.program_id(2) * share

  def step(j, carry):
    top, total, out = carry
    tokens = j * keys + jnp.arange(keys, dtype=jnp.int32)
    inside = tokens < length
    pages = plgpu.load(table_ref.at[lax.div(tokens, jnp.int32(P))], mask=inside, other=0)
    slots = lax.rem(tokens, jnp.int32(P))
    at, wanted = (pages[:, None], slots[:, None], columns), inside[:, None] & (columns < size)
    k_td, v_td = (plgpu.load(ref.at[at], mask=wanted, other=0).astype(q_ref.dtype) for ref in (k_ref, v_ref))
    s = pallas_triton.dot(q_nd, k_td, 1) * (scale * _LOG2E)
    if scale_refs:
      k_scale, v_scale = (plgpu.load(ref.at[pages, slots], mask=inside, other=0.0) for ref in scale_refs)
      s *= k_scale[None]
    s = jnp.where(tokens[None] <= positions[:, None], s, -jnp.inf)
    new_top = jnp.maximum(top, jnp.max(s, axis=1))
    p = jnp.exp2(s - new_top[:, None])
    shrink = jnp.exp2(top - new_top)
    weights = p * v_scale[None] if scale_refs else p
    return new_top, total * shrink + jnp.sum(p, axis=1), out * shrink[:, None] + pallas_triton.dot(weights.astype(v_td.dtype), v_td, 0)

  start = jnp.full((n,), _FAR, jnp.float32), jnp.zeros((n,), jnp.float32), jnp.zeros((n, d), jnp.float32)
  top, total, out = lax.fori_loop(first, jnp.minimum(first + share, pl.cdiv(length, keys)), step, start)
  some = top > _FAR
  safe = jnp.where(some, total, 1.0)
  pallas_triton.put(out_ref, jnp.where(some[:, None], out / safe[:, None], 0.0), q_start, queries, size)
  pallas_triton.put(lse_ref, jnp.where(some, top + jnp.log2(safe), _FAR), q_start, queries)


def _sizes(d, queries, dtype) -> Sizes:
  sizes = _SIZES[max(d, min(_SIZES))]
  if dtype == jnp.float32:  # twice the bytes
    sizes = sizes._replace(queries=sizes.queries // 2, keys=sizes.keys // 2)
  return sizes._replace(queries=min(sizes.queries, pallas_triton.up(queries)))


def refusal(q, k, tables) -> str | None:
  """What of the arguments the kernel does not take, with the remedy."""
  del tables  # of any size
  if q.dtype not in (jnp.float32, jnp.bfloat16, jnp.float16):
    return f"paged attention of {q.dtype} has no Triton kernel; cast to float32, bfloat16 or float16, or use implementation='xla'"
  if k.shape[3] > pallas_triton.LARGEST_HEAD:
    return f"head size {k.shape[3]} is above {pallas_triton.LARGEST_HEAD}; use implementation='xla'"
  if k.dtype == jnp.int8 and 2**31 < k.size <= 2**32:  # Pallas counts in 64 bits above 2**32 bytes alone, and in signed 32 below
    return f"int8 pages of {k.size} numbers cannot be addressed; make them fewer than 2**31 or more than 2**32, or use implementation='xla'"
  return None
