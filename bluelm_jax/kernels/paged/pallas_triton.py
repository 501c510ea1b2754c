"""Paged attention for GPUs (Pallas lowered through Triton).

A program holds a block of one key head's queries of a row and walks its part of the row's keys, up to the last position
of these queries. Where programs are few, as in decoding, a row's keys are split over several, whose outputs are joined
afterwards by their log-sum-exps (flash-decoding, https://crfm.stanford.edu/2023/10/12/flashdecoding.html).

Shapes: R rows, Q queries of a row, H heads, K key-value heads, G = H / K, I blocks of N queries each (queries of a key
head, the G of a position side by side, I N at least G Q), M pages of a table, X pages, P slots of a page, Z splits of the
keys, T keys of a step, D head size, d the same up to a power of two.
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
  G, d = H // K, pallas_triton.up(D)
  sizes = _sizes(d, G * Q, q_RQHD.dtype)
  N, I = sizes.queries, pl.cdiv(G * Q, sizes.queries)
  steps = pl.cdiv(M * P, sizes.keys)
  Z = min(steps, pl.cdiv(2 * api.target_processors(), R * I * K))  # programs for every processor, twice
  fill = (0, I * N - G * Q)
  q_RKND = jnp.pad(einops.rearrange(q_RQHD, "r q (k g) d -> r k (q g) d", k=K), ((0, 0), (0, 0), fill, (0, 0)))
  positions_RN = jnp.pad(jnp.repeat(positions_RQ, G, axis=1), ((0, 0), fill), constant_values=-1)
  lengths_RI = positions_RN.reshape(R, I, N).max(-1) + 1

  # Views for a program (block of queries, key head, split).
  row = lambda i: lax.div(i, jnp.int32(I))
  block = lambda i: lax.rem(i, jnp.int32(I))
  pages = pl.BlockSpec((X, None, P, d), lambda i, k, z: (0, k, 0, 0))
  lines = pl.BlockSpec((X, None, P), lambda i, k, z: (0, k, 0))
  out_ZRKND, lse_ZRKN = pl.pallas_call(
      functools.partial(_kernel, sizes=sizes, size=D, scale=scale), grid=(R * I, K, Z),
      in_specs=[
          pl.BlockSpec((None, M), lambda i, k, z: (row(i), 0)), pl.BlockSpec((None, 1), lambda i, k, z: (row(i), block(i))),
          pl.BlockSpec((None, N), lambda i, k, z: (row(i), block(i))),
          pl.BlockSpec((None, None, N, d), lambda i, k, z: (row(i), k, block(i), 0)), pages, pages, [lines] * len(scales or ())],
      out_specs=[
          pl.BlockSpec((None, None, None, N, d), lambda i, k, z: (z, row(i), k, block(i), 0)),
          pl.BlockSpec((None, None, None, N), lambda i, k, z: (z, row(i), k, block(i)))],
      out_shape=[
          jax.ShapeDtypeStruct((Z, R, K, I * N, D), q_RQHD.dtype if Z == 1 else jnp.float32),
          jax.ShapeDtypeStruct((Z, R, K, I * N), jnp.float32)],
      compiler_params=plgpu.CompilerParams(num_warps=sizes.warps, num_stages=sizes.stages),
      interpret=pallas_triton.interpreted(), name="paged_attention",
  )(tables_RM, lengths_RI, positions_RN, q_RKND, k_XKPD, v_XKPD, list(scales or ()))
  out_RKND = out_ZRKND[0] if Z == 1 else _join(out_ZRKND, lse_ZRKN)
  return einops.rearrange(out_RKND[:, :, : G * Q], "r k (q g) d -> r q (k g) d", q=Q).astype(q_RQHD.dtype)


def _join(out_ZRKND, lse_ZRKN):
  """The parts' outputs weighted by their shares of the softmax; the log-sum-exps are of base 2, _FAR where nothing was seen."""
  weights = jnp.exp2(lse_ZRKN - lse_ZRKN.max(0))
  return jnp.einsum("zrkn,zrknd->rknd", weights / weights.sum(0), out_ZRKND)


def _kernel(table_ref, length_ref, positions_ref, q_ref, k_ref, v_ref, scale_refs, out_ref, lse_ref, *, sizes, size, scale):
  N, d = q_ref.shape
  P, T, length = k_ref.shape[1], sizes.keys, length_ref[0]
  columns = None if size == d else (jnp.arange(d, dtype=jnp.int32) < size)[None, :]
  q_Nd = plgpu.load(q_ref, mask=None if columns is None else jnp.broadcast_to(columns, (N, d)), other=None if columns is None else 0.0)
  positions = positions_ref[...]
  share = pl.cdiv(pl.cdiv(length, T), pl.num_programs(2))  # steps of this program; the last ones may have none
  first = pl.program_id(2) * share

  def step(j, carry):
    top, total, out = carry
    tokens = j * T + jnp.arange(T, dtype=jnp.int32)
    inside = tokens < length
    pages = plgpu.load(table_ref.at[lax.div(tokens, jnp.int32(P))], mask=inside, other=0)
    slots = lax.rem(tokens, jnp.int32(P))
    at = pages[:, None], slots[:, None], jnp.arange(d, dtype=jnp.int32)[None]
    wanted = jnp.broadcast_to(inside[:, None] if columns is None else inside[:, None] & columns, (T, d))
    k_Td, v_Td = (plgpu.load(ref.at[at], mask=wanted, other=0).astype(q_ref.dtype) for ref in (k_ref, v_ref))
    s = pallas_triton.dot(q_Nd, k_Td, 1) * (scale * _LOG2E)
    if scale_refs:
      k_scale, v_scale = (plgpu.load(ref.at[pages, slots], mask=inside, other=0.0) for ref in scale_refs)
      s *= k_scale[None]
    s = jnp.where(tokens[None] <= positions[:, None], s, -jnp.inf)
    new_top = jnp.maximum(top, jnp.max(s, axis=1))
    p = jnp.exp2(s - new_top[:, None])
    shrink = jnp.exp2(top - new_top)
    weights = p * v_scale[None] if scale_refs else p
    return new_top, total * shrink + jnp.sum(p, axis=1), out * shrink[:, None] + pallas_triton.dot(weights.astype(v_Td.dtype), v_Td, 0)

  start = jnp.full((N,), _FAR, jnp.float32), jnp.zeros((N,), jnp.float32), jnp.zeros((N, d), jnp.float32)
  top, total, out = lax.fori_loop(first, jnp.minimum(first + share, pl.cdiv(length, T)), step, start)
  some = top > _FAR
  safe = jnp.where(some, total, 1.0)
  plgpu.store(
      out_ref, jnp.where(some[:, None], out / safe[:, None], 0.0).astype(out_ref.dtype),
      mask=None if columns is None else jnp.broadcast_to(columns, (N, d)))
  plgpu.store(lse_ref, jnp.where(some, top + jnp.log2(safe), _FAR))


def _sizes(d, queries, dtype) -> Sizes:
  sizes = _SIZES[max(d, min(_SIZES))]
  if dtype == jnp.float32:  # twice the bytes
    sizes = sizes._replace(queries=sizes.queries // 2, keys=sizes.keys // 2)
  return sizes._replace(queries=min(sizes.queries, pallas_triton.up(queries)))


def refusal(q, k, tables) -> str | None:
  """What of the arguments the kernel does not take, with the remedy."""
  del k, tables  # of any kind
  if q.dtype not in (jnp.float32, jnp.bfloat16, jnp.float16):
    return f"paged attention of {q.dtype} has no Triton kernel; cast to float32, bfloat16 or float16, or use implementation='xla'"
  if q.shape[-1] > pallas_triton.LARGEST_HEAD:
    return f"head size {q.shape[-1]} is above {pallas_triton.LARGEST_HEAD}; use implementation='xla'"
  return None
