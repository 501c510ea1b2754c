"""Paged attention for TPUs (Mosaic): one row after the other, all heads of a core at once.

A row's pages are copied from HBM a block of them at a time, while the block before is attended to; the first block of
the next row travels beside the last one of this row. Pages behind a row's last position are not read. The two cores of
a chip that has them (v4, v5p) share the heads. Of int8 pages those of 128 slots are best: where they have fewer, XLA
lays the scales out anew for every call, all of them.

Shapes: R rows, Q queries of a row, H heads, K key-value heads, G = H / K, N = G Q queries of a key head up to whole tiles,
M pages of a table, X pages, P slots of a page, n pages of a block, J blocks of a table, T = n P tokens of a block, D head size,
C cores, h = K / C key-value heads of one.
"""

import functools
import math

import einops
import jax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
import jax.numpy as jnp

from bluelm_jax.kernels.attention import api
from bluelm_jax.kernels.attention.pallas_tpu import product

_FAR = -1e30  # finite, so that no infinities meet; its exponential is 0
_LANES = 128
_LOG2E = math.log2(math.e)
_BLOCK = 512  # tokens
_SCALAR_BYTES = 512 * 1024  # of the scalar memory, for the tables

interpret = None  # None interprets on CPU; tests put pltpu.InterpretParams(...) here


def attention(q_RQHD, k_XKPD, v_XKPD, tables_RM, positions_RQ, scales, scale):
  (R, Q, H, D), (_, K, P, _), M = q_RQHD.shape, k_XKPD.shape, tables_RM.shape[1]
  n = min(max(1, _BLOCK // P), M)
  rows = 32 // q_RQHD.dtype.itemsize  # of a tile
  filled = ((0, 0), (0, -(H // K * Q) % rows))
  q_RKND = jnp.pad(einops.rearrange(q_RQHD, "r q (k g) d -> r k (g q) d", k=K), ((0, 0), *filled, (0, 0)))
  positions_RN = jnp.pad(jnp.tile(positions_RQ, (1, H // K)), filled, constant_values=-1)
  N, C = positions_RN.shape[1], _cores(K)
  h = K // C
  heads = pl.BlockSpec((1, h, N, D), lambda c, r, *_: (r, c, 0, 0))
  pages = [(k_XKPD, (n, h, P, D)), (v_XKPD, (n, h, P, D))]
  lines = [(_in_blocks(x, tables_RM, n, C), (h, n * P)) for x in scales or ()]
  out_RKND = pl.pallas_call(
      functools.partial(_kernel, scale=scale, table=M),
      grid_spec=pltpu.PrefetchScalarGridSpec(
          num_scalar_prefetch=2, grid=(C, R),
          in_specs=[
              pl.BlockSpec((1, N, 1), lambda c, r, *_: (r, 0, 0)), heads,
              [pl.BlockSpec(memory_space=pl.ANY)] * 2, [pl.BlockSpec(memory_space=pl.ANY)] * len(lines)],
          out_specs=heads,
          scratch_shapes=[
              [pltpu.VMEM((2, *shape), x.dtype) for x, shape in pages], [pltpu.VMEM((2, *shape), x.dtype) for x, shape in lines],
              pltpu.VMEM((h, N, _LANES), jnp.float32), pltpu.VMEM((h, N, _LANES), jnp.float32), pltpu.VMEM((h, N, D), jnp.float32),
              pltpu.SMEM((1,), jnp.int32), pltpu.SemaphoreType.DMA((2,))]),
      out_shape=jax.ShapeDtypeStruct(q_RKND.shape, q_RKND.dtype), name="paged_attention",
      interpret=(api.target_platform() == "cpu") if interpret is None else interpret,
      compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=64 * 2**20),
  )(tables_RM.reshape(-1), positions_RQ.max(1) + 1, positions_RN[..., None], q_RKND, [x for x, _ in pages], [x for x, _ in lines])
  return einops.rearrange(out_RKND[:, :, : H // K * Q], "r k (g q) d -> r q (k g) d", q=Q)


def _cores(kv_heads: int) -> int:
  cores = getattr(api.target(), "num_cores", None) or 1
  return cores if kv_heads % cores == 0 else 1


def _in_blocks(scale_XKP, tables_RM, n, cores):
  """[R, J, C, h, T]: the scales of a row in order, gathered beforehand: of a page they are less than a tile, and few bytes."""
  tables = jnp.pad(tables_RM, ((0, 0), (0, -tables_RM.shape[1] % n)))
  return einops.rearrange(scale_XKP[tables], "r (j n) (c h) p -> r j c h (n p)", n=n, c=cores)


def _kernel(
    tables_ref, lengths_ref, positions_ref, q_ref, pages, lines, out_ref,
    page_buffers, line_buffers, top_ref, total_ref, sum_ref, turn_ref, semaphores, *, scale, table,
):
  core, row, rows = pl.program_id(0), pl.program_id(1), pl.num_programs(1)
  _, n, heads, P, D = page_buffers[0].shape
  T = n * P

  def blocks(row):
    return jnp.maximum(pl.cdiv(lengths_ref[row], T), 1)

  def copy(row, j, slot, act):
    """Starts all copies of a block, or waits for them."""
    def page(i, _):
      for ref, buffer in zip(pages, page_buffers):
        own = ref.at[tables_ref[row * table + j * n + i], pl.ds(core * heads, heads)]
        act(pltpu.make_async_copy(own, buffer.at[slot, i], semaphores.at[slot]))
    jax.lax.fori_loop(0, jnp.clip(pl.cdiv(lengths_ref[row], P) - j * n, 0, n), page, None)
    for ref, buffer in zip(lines, line_buffers):
      act(pltpu.make_async_copy(ref.at[row, j, core], buffer.at[slot], semaphores.at[slot]))

  start, wait = (lambda c: c.start()), (lambda c: c.wait())

  @pl.when(row == 0)
  def _first():
    turn_ref[0] = 0
    page_buffers[1][...] = jnp.zeros_like(page_buffers[1])  # slots that no copy has filled weigh 0, and must be numbers
    copy(0, 0, 0, start)

  top_ref[...] = jnp.full_like(top_ref, _FAR)
  total_ref[...] = jnp.zeros_like(total_ref)
  sum_ref[...] = jnp.zeros_like(sum_ref)

  def block(j, _):
    slot, last = turn_ref[0], j + 1 == blocks(row)
    turn_ref[0] = 1 - slot

    @pl.when(jnp.logical_not(last))
    def _following():
      copy(row, j + 1, 1 - slot, start)

    @pl.when(last & (row + 1 < rows))
    def _next_row():
      copy(row + 1, 0, 1 - slot, start)

    copy(row, j, slot, wait)
    seen_NT = j * T + jax.lax.broadcasted_iota(jnp.int32, (q_ref.shape[2], T), 1) <= positions_ref[0]
    for k in range(heads):
      k_TD, v_TD = (buffer[slot, :, k].reshape(T, D).astype(q_ref.dtype) for buffer in page_buffers)
      k_scale, v_scale = (buffer[slot, k][None] for buffer in line_buffers) if lines else (1.0, 1.0)
      s = jnp.where(seen_NT, product(q_ref[0, k], k_TD, (1, 1)) * k_scale, _FAR)  # unscaled: the scale sits in the exponent
      top = jnp.maximum(top_ref[k, :, :1], jnp.max(s, axis=1, keepdims=True))
      p = jnp.exp2((s - top) * (scale * _LOG2E))
      shrink = jnp.exp2((top_ref[k, :, :1] - top) * (scale * _LOG2E))
      total_ref[k] = jnp.broadcast_to(total_ref[k, :, :1] * shrink + jnp.sum(p, axis=1, keepdims=True), total_ref.shape[1:])
      top_ref[k] = jnp.broadcast_to(top, top_ref.shape[1:])
      sum_ref[k] = sum_ref[k] * shrink + product((p * v_scale).astype(v_TD.dtype), v_TD, (1, 0))

  jax.lax.fori_loop(0, blocks(row), block, None)
  some = top_ref[:, :, :1] > _FAR
  out_ref[0] = jnp.where(some, sum_ref[...] / jnp.where(some, total_ref[:, :, :1], 1.0), 0.0).astype(out_ref.dtype)


def refusal(q, k, tables) -> str | None:
  """What of the arguments the kernel does not take, with the remedy."""
  if q.dtype not in (jnp.float32, jnp.bfloat16):
    return f"pallas_tpu takes float32 or bfloat16, q is {q.dtype}; cast it or use implementation='xla'"
  if k.shape[3] % _LANES:  # XLA would lay such pages out in another order, and copy all of them for every call
    return f"pallas_tpu takes pages whose head size is a multiple of {_LANES}, not {k.shape[3]}; make pages wider or use implementation='xla'"
  tile = 32 // k.dtype.itemsize
  if k.shape[2] % tile:
    return f"pallas_tpu takes {k.dtype} pages of a multiple of {tile} slots, not {k.shape[2]}; change the page or use implementation='xla'"
  if tables.size * 4 > _SCALAR_BYTES:
    return f"tables of {tables.shape} pages are too many for pallas_tpu; use larger pages or fewer rows"
  return None
