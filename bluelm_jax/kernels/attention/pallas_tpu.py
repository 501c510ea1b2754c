"""Blockwise attention for TPUs (Mosaic): forward, dq, and dk with dv.

Each kernel walks a list of the block pairs that see each other, made from the mask before the kernel starts and
held in scalar memory: a pair with nothing to see costs neither a transfer nor a product, and a pair that is
wholly visible skips the mask. The grid is (row, head, pair), so the number of steps is that of the busiest row.

Shapes: B batch, Q queries, S keys, H heads, K key-value heads, G = H / K, D head size of queries and keys,
V head size of values, N block pairs of a row; q, s block sizes.
"""

import functools
import json
import math
import pathlib

import jax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
import jax.numpy as jnp

from bluelm_jax.kernels.attention import api
from bluelm_jax.kernels.attention import masks

_FAR = -1e30  # finite, so that no infinities meet; its exponential is 0
_LANES = 128
_SCALAR_BYTES = 512 * 1024  # of the scalar memory, for the list of pairs
_LOG2E = math.log2(math.e)

# What stands beside the two block numbers of a pair, 14 bits each.
_FIRST, _LAST, _CLASS = 1 << 30, 1 << 29, 1 << 28  # _CLASS alone is PARTIAL; with _FULL, FULL
_FULL = -(1 << 31)

interpret = None  # None interprets on CPU; tests put pltpu.InterpretParams(...) here


@functools.cache
def _blocks_by_chip():
  return json.loads(pathlib.Path(__file__).with_name("blocks.json").read_text())


def _block_sizes(kernel: str, queries: int, keys: int) -> tuple[int, int]:
  """(q, s): those of the chip, no longer than the rows need."""
  table = _blocks_by_chip()
  kind = "cpu" if api.target_platform() == "cpu" else api.target_device_kind()
  sizes = table.get(kind, table["default"])[kernel]
  return tuple(min(size, -(-n // _LANES) * _LANES) for size, n in zip(sizes, (queries, keys)))


def forward(q_BQHD, k_BSKD, v_BSKV, mask, scale):
  """Returns (out [B, Q, H, V], log-sum-exp float32 [B, Q, H])."""
  q_BHQD, k_BKSD, v_BKSV, mask, (bq, bk) = _prepare("forward", q_BQHD, k_BSKD, v_BSKV, mask)
  pairs_BN, steps = _pairs(mask, bq, bk, by_query=True)
  (B, H, Q, D), K, V = q_BHQD.shape, k_BKSD.shape[1], v_BKSV.shape[-1]
  G = H // K
  at_q = lambda b, h, n, pairs: (b, h, _q_block(pairs[b, n]), 0)
  at_k = lambda b, h, n, pairs: (b, h // G, _k_block(pairs[b, n]), 0)
  at_row = lambda b, h, n, pairs: (b, h, 0, _q_block(pairs[b, n]))
  out, lse = _call(
      functools.partial(_forward_kernel, scale=scale, mask=mask), (B, H, steps), pairs_BN, mask, bq, bk,
      [pl.BlockSpec((1, 1, bq, D), at_q), pl.BlockSpec((1, 1, bk, D), at_k), pl.BlockSpec((1, 1, bk, V), at_k)],
      [pl.BlockSpec((1, 1, bq, V), at_q), pl.BlockSpec((1, 1, 1, bq), at_row)],
      [jax.ShapeDtypeStruct((B, H, Q, V), v_BKSV.dtype), jax.ShapeDtypeStruct((B, H, 1, Q), jnp.float32)],
      [pltpu.VMEM((bq, _LANES), jnp.float32), pltpu.VMEM((bq, _LANES), jnp.float32), pltpu.VMEM((bq, V), jnp.float32)],
      fixed=bq, name="attention_forward", cost=_cost(q_BHQD, k_BKSD, v_BKSV, mask, 2))(q_BHQD, k_BKSD, v_BKSV)
  out = out[:, :, : q_BQHD.shape[1], : v_BSKV.shape[-1]].transpose(0, 2, 1, 3)
  return out, lse[:, :, 0, : q_BQHD.shape[1]].transpose(0, 2, 1)


def backward(q_BQHD, k_BSKD, v_BSKV, mask, scale, lse_BQH, delta_BQH, d_out_BQHV):
  """Returns (dq, dk, dv) in the dtypes of q, k and v; `lse` is finite, `delta` as api.delta gives it."""
  args = q_BQHD, k_BSKD, v_BSKV, mask, scale, lse_BQH, delta_BQH, d_out_BQHV
  return _backward_queries(*args), *_backward_keys(*args)


def _backward_queries(q_BQHD, k_BSKD, v_BSKV, mask, scale, lse_BQH, delta_BQH, d_out_BQHV):
  q_BHQD, k_BKSD, v_BKSV, mask, (bq, bk) = _prepare("dq", q_BQHD, k_BSKD, v_BSKV, mask)
  d_out_BHQV = _heads_first(d_out_BQHV, bq)
  lse_BH1Q, delta_BH1Q = (_rows(x, bq) for x in (lse_BQH, delta_BQH))
  pairs_BN, steps = _pairs(mask, bq, bk, by_query=True)
  (B, H, Q, D), K, V = q_BHQD.shape, k_BKSD.shape[1], v_BKSV.shape[-1]
  G = H // K
  at_q = lambda b, h, n, pairs: (b, h, _q_block(pairs[b, n]), 0)
  at_k = lambda b, h, n, pairs: (b, h // G, _k_block(pairs[b, n]), 0)
  at_row = lambda b, h, n, pairs: (b, h, 0, _q_block(pairs[b, n]))
  dq = _call(
      functools.partial(_dq_kernel, scale=scale, mask=mask), (B, H, steps), pairs_BN, mask, bq, bk,
      [pl.BlockSpec((1, 1, bq, D), at_q), pl.BlockSpec((1, 1, bk, D), at_k), pl.BlockSpec((1, 1, bk, V), at_k),
       pl.BlockSpec((1, 1, bq, V), at_q), pl.BlockSpec((1, 1, 1, bq), at_row), pl.BlockSpec((1, 1, 1, bq), at_row)],
      pl.BlockSpec((1, 1, bq, D), at_q), jax.ShapeDtypeStruct(q_BHQD.shape, q_BHQD.dtype),
      [pltpu.VMEM((bq, _LANES), jnp.float32), pltpu.VMEM((bq, _LANES), jnp.float32), pltpu.VMEM((bq, D), jnp.float32)],
      fixed=bq, name="attention_dq", cost=_cost(q_BHQD, k_BKSD, v_BKSV, mask, 3))(q_BHQD, k_BKSD, v_BKSV, d_out_BHQV, lse_BH1Q, delta_BH1Q)
  return dq[:, :, : q_BQHD.shape[1], : q_BQHD.shape[-1]].transpose(0, 2, 1, 3)


def _backward_keys(q_BQHD, k_BSKD, v_BSKV, mask, scale, lse_BQH, delta_BQH, d_out_BQHV):
  q_BHQD, k_BKSD, v_BKSV, mask, (bq, bk) = _prepare("dkv", q_BQHD, k_BSKD, v_BSKV, mask)
  d_out_BHQV = _heads_first(d_out_BQHV, bq)
  lse_BH1Q, delta_BH1Q = (_rows(x, bq) for x in (lse_BQH, delta_BQH))
  pairs_BN, steps = _pairs(mask, bq, bk, by_query=False)
  (B, H, _, D), (_, K, S, V) = q_BHQD.shape, v_BKSV.shape
  G = H // K  # the heads of a group are the innermost steps of a pair
  at_q = lambda b, h, n, pairs: (b, h * G + n % G, _q_block(pairs[b, n // G]), 0)
  at_k = lambda b, h, n, pairs: (b, h, _k_block(pairs[b, n // G]), 0)
  at_row = lambda b, h, n, pairs: (b, h * G + n % G, 0, _q_block(pairs[b, n // G]))
  dk, dv = _call(
      functools.partial(_dkv_kernel, scale=scale, mask=mask, group=G), (B, K, steps * G), pairs_BN, mask, bq, bk,
      [pl.BlockSpec((1, 1, bq, D), at_q), pl.BlockSpec((1, 1, bk, D), at_k), pl.BlockSpec((1, 1, bk, V), at_k),
       pl.BlockSpec((1, 1, bq, V), at_q), pl.BlockSpec((1, 1, 1, bq), at_row), pl.BlockSpec((1, 1, 1, bq), at_row)],
      [pl.BlockSpec((1, 1, bk, D), at_k), pl.BlockSpec((1, 1, bk, V), at_k)],
      [jax.ShapeDtypeStruct((B, K, S, D), k_BKSD.dtype), jax.ShapeDtypeStruct((B, K, S, V), v_BKSV.dtype)],
      [pltpu.VMEM((bk, D), jnp.float32), pltpu.VMEM((bk, V), jnp.float32)],
      fixed=bk, name="attention_dkv", cost=_cost(q_BHQD, k_BKSD, v_BKSV, mask, 4), group=G)(q_BHQD, k_BKSD, v_BKSV, d_out_BHQV, lse_BH1Q, delta_BH1Q)
  cut = lambda x, size: x[:, :, : k_BSKD.shape[1], :size].transpose(0, 2, 1, 3)
  return cut(dk, k_BSKD.shape[-1]), cut(dv, v_BSKV.shape[-1])


def _forward_kernel(pairs_ref, info, q_ref, k_ref, v_ref, out_ref, lse_ref, fixed_ref, top_ref, total_ref, sum_ref, *, scale, mask):
  pair = pairs_ref[pl.program_id(0), pl.program_id(2)]

  @pl.when(pair & _FIRST != 0)
  def _start():
    _hold(fixed_ref, info.queries)
    top_ref[...] = jnp.full_like(top_ref, _FAR)
    total_ref[...] = jnp.zeros_like(total_ref)
    sum_ref[...] = jnp.zeros_like(sum_ref)

  def see(masked):
    s = product(q_ref[0, 0], k_ref[0, 0], (1, 1))  # unscaled: the scale sits in the exponent
    if masked:
      s = jnp.where(_visible(mask, _columns(fixed_ref, info.queries), _across(info.keys)), s, _FAR)
    top = jnp.maximum(top_ref[:, :1], jnp.max(s, axis=1, keepdims=True))
    p = jnp.exp2((s - top) * (scale * _LOG2E))
    shrink = jnp.exp2((top_ref[:, :1] - top) * (scale * _LOG2E))
    total_ref[...] = jnp.broadcast_to(total_ref[:, :1] * shrink + jnp.sum(p, axis=1, keepdims=True), total_ref.shape)
    top_ref[...] = jnp.broadcast_to(top, top_ref.shape)
    sum_ref[...] = sum_ref[...] * shrink + product(p.astype(v_ref.dtype), v_ref[0, 0], (1, 0))

  _by_class(pair, see)

  @pl.when(pair & _LAST != 0)
  def _finish():
    seen = top_ref[...] > _FAR
    total = jnp.where(seen, total_ref[...], 1.0)
    out_ref[0, 0] = jnp.where(seen[:, :1], sum_ref[...] / total[:, :1], 0.0).astype(out_ref.dtype)
    lse = jnp.where(seen, top_ref[...] * scale + jnp.log(total), -jnp.inf)
    lse_ref[0, 0] = jnp.transpose(lse)[:1]


def _dq_kernel(pairs_ref, info, q_ref, k_ref, v_ref, d_out_ref, lse_ref, delta_ref, dq_ref, fixed_ref, lse_held, delta_held, sum_ref, *, scale, mask):
  pair = pairs_ref[pl.program_id(0), pl.program_id(2)]

  @pl.when(pair & _FIRST != 0)
  def _start():
    _hold(fixed_ref, info.queries)
    lse_held[...] = _column(lse_ref[0, 0] * _LOG2E)
    delta_held[...] = _column(delta_ref[0, 0])
    sum_ref[...] = jnp.zeros_like(sum_ref)

  def see(masked):
    s = product(q_ref[0, 0], k_ref[0, 0], (1, 1)) * (scale * _LOG2E)
    if masked:
      s = jnp.where(_visible(mask, _columns(fixed_ref, info.queries), _across(info.keys)), s, _FAR)
    p = jnp.exp2(s - lse_held[:, :1])
    dp = product(d_out_ref[0, 0], v_ref[0, 0], (1, 1))
    ds = p * (dp - delta_held[:, :1])
    sum_ref[...] += product(ds.astype(k_ref.dtype), k_ref[0, 0], (1, 0))

  _by_class(pair, see)

  @pl.when(pair & _LAST != 0)
  def _finish():
    dq_ref[0, 0] = (sum_ref[...] * scale).astype(dq_ref.dtype)


def _dkv_kernel(pairs_ref, info, q_ref, k_ref, v_ref, d_out_ref, lse_ref, delta_ref, dk_ref, dv_ref, fixed_ref, dk_sum, dv_sum, *, scale, mask, group):
  """Scores are [keys, queries] here, so that per-query numbers lie along the lanes as they come."""
  step = pl.program_id(2)
  pair, head = pairs_ref[pl.program_id(0), step // group], step % group

  @pl.when((pair & _FIRST != 0) & (head == 0))
  def _start():
    _hold(fixed_ref, info.keys)
    dk_sum[...] = jnp.zeros_like(dk_sum)
    dv_sum[...] = jnp.zeros_like(dv_sum)

  def see(masked):
    s = product(k_ref[0, 0], q_ref[0, 0], (1, 1)) * (scale * _LOG2E)
    if masked:
      s = jnp.where(_visible(mask, _across(info.queries), _columns(fixed_ref, info.keys)), s, _FAR)
    p = jnp.exp2(s - lse_ref[0, 0] * _LOG2E)
    dv_sum[...] += product(p.astype(d_out_ref.dtype), d_out_ref[0, 0], (1, 0))
    dp = product(v_ref[0, 0], d_out_ref[0, 0], (1, 1))
    ds = p * (dp - delta_ref[0, 0])
    dk_sum[...] += product(ds.astype(q_ref.dtype), q_ref[0, 0], (1, 0))

  _by_class(pair, see)

  @pl.when((pair & _LAST != 0) & (head == group - 1))
  def _finish():
    dk_ref[0, 0] = (dk_sum[...] * scale).astype(dk_ref.dtype)
    dv_ref[0, 0] = dv_sum[...].astype(dv_ref.dtype)


def product(a, b, contract):
  """A matrix product over one dimension of each, accumulated in float32."""
  precision = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
  return jax.lax.dot_general(a, b, (((contract[0],), (contract[1],)), ((), ())), precision=precision, preferred_element_type=jnp.float32)


def _by_class(pair, see):
  pl.when((pair & _CLASS != 0) & (pair >= 0))(functools.partial(see, True))
  pl.when(pair < 0)(functools.partial(see, False))


# Positions and segment ids of both sides, as references to rows [1, 1, block].


class _Info:
  """References to a pair's mask numbers: (positions, segment ids) of its queries and of its keys, None where unused."""

  def __init__(self, mask, refs):
    refs = iter(refs)
    take = lambda x: None if x is None else next(refs)
    self.queries = take(mask.q_positions), take(mask.q_segment_ids)
    self.keys = take(mask.k_positions), take(mask.k_segment_ids)


def _column(row_1N):
  """[1, N] -> [N, 128], every lane alike."""
  return jnp.transpose(jnp.broadcast_to(row_1N, (_LANES, row_1N.shape[1])))


def _hold(fixed_ref, side):
  """Keeps the side that stays while the other travels, as columns."""
  for slot, ref in enumerate(side):
    if ref is not None:
      fixed_ref[slot] = _column(ref[0])


def _columns(fixed_ref, side):
  return tuple(None if ref is None else fixed_ref[slot][:, :1] for slot, ref in enumerate(side))


def _across(side):
  return tuple(None if ref is None else ref[0] for ref in side)


def _visible(mask, queries, keys):
  return masks.pairs(*queries, *keys, mask.causal, mask.window)


def _call(kernel, grid, pairs_BN, mask, bq, bk, in_specs, out_specs, out_shape, scratch, *, fixed, name, cost, group=1):
  """A pallas_call over (row, head, pair) that also carries the mask's numbers; takes the in_specs' arrays."""
  sides = [(x, bq, _q_block) for x in (mask.q_positions, mask.q_segment_ids)]
  sides += [(x, bk, _k_block) for x in (mask.k_positions, mask.k_segment_ids)]
  sides = [side for side in sides if side[0] is not None]
  info_specs = [
      pl.BlockSpec((1, 1, size), lambda b, h, n, pairs, block=block: (b, 0, block(pairs[b, n // group]))) for _, size, block in sides]

  def body(pairs_ref, *refs):
    kernel(pairs_ref, _Info(mask, refs[: len(sides)]), *refs[len(sides) :])

  call = pl.pallas_call(
      body,
      grid_spec=pltpu.PrefetchScalarGridSpec(
          num_scalar_prefetch=1, grid=grid, in_specs=[*info_specs, *in_specs], out_specs=out_specs,
          scratch_shapes=[pltpu.VMEM((2, fixed, _LANES), jnp.int32), *scratch]),
      out_shape=out_shape, name=name, cost_estimate=cost,
      interpret=(api.target_platform() == "cpu") if interpret is None else interpret,
      compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel", "arbitrary"), vmem_limit_bytes=64 * 2**20))
  return lambda *arrays: call(pairs_BN, *(x[:, None] for x, _, _ in sides), *arrays)


def _cost(q_BHQD, k_BKSD, v_BKSV, mask, products: int) -> pl.CostEstimate:
  """For the compiler, which lays transfers beside kernels that it knows to be long.

  Args:
    products: matrix products of the kernel, each 2 Q S D.
  """
  (B, H, Q, D), S = q_BHQD.shape, k_BKSD.shape[2]
  pairs = B * H * Q * S // (2 if mask.causal else 1)
  size = lambda x: x.size * x.dtype.itemsize
  return pl.CostEstimate(
      flops=2 * products * pairs * D, transcendentals=pairs, bytes_accessed=2 * size(q_BHQD) + size(k_BKSD) + size(v_BKSV))


def _q_block(pair):
  return (pair >> 14) & 0x3FFF


def _k_block(pair):
  return pair & 0x3FFF


def _pairs(mask, bq, bk, by_query: bool):
  """(int32 [B, N] the pairs to compute, the number of them in the busiest row).

  Pairs of one query block (or key block) follow each other; each has at least one, of class NONE if it sees
  nothing, so that its output is written. Shorter rows repeat their last pair's blocks and compute nothing.
  """
  classes_BIJ = masks.block_classes(mask, bq, bk)
  B, I, J = classes_BIJ.shape
  if max(I, J) > 0x3FFF or B * I * J * 4 > _SCALAR_BYTES:
    raise ValueError(f"{B} rows of {I} x {J} blocks are too many for pallas_tpu; shard the rows or the context further")
  q, k = jnp.meshgrid(jnp.arange(I), jnp.arange(J), indexing="ij")
  numbers = jnp.broadcast_to(q << 14 | k, classes_BIJ.shape)
  if not by_query:
    classes_BIJ, numbers = classes_BIJ.swapaxes(1, 2), numbers.swapaxes(1, 2)
  seen = classes_BIJ != masks.NONE
  listed = seen.at[:, :, 0].set(seen[:, :, 0] | ~seen.any(-1))
  count = jnp.cumsum(listed, axis=-1)
  pair = numbers | jnp.where(count == 1, _FIRST, 0) | jnp.where(count == count[:, :, -1:], _LAST, 0)
  pair |= jnp.where(seen, _CLASS, 0) | jnp.where(classes_BIJ == masks.FULL, _FULL, 0)
  pair, listed = pair.reshape(B, -1), listed.reshape(B, -1)
  order = jnp.argsort(~listed, axis=1, stable=True)
  lengths = jnp.sum(listed, axis=1)
  last = jnp.take_along_axis(order, lengths[:, None] - 1, axis=1)
  idle = jnp.take_along_axis(pair, last, axis=1) & (_FIRST - 1) & ~(_LAST | _CLASS)
  listed_first = jnp.take_along_axis(pair, order, axis=1)
  return jnp.where(jnp.arange(I * J) < lengths[:, None], listed_first, idle).astype(jnp.int32), jnp.max(lengths)


def _prepare(kernel, q_BQHD, k_BSKD, v_BSKV, mask):
  """Heads first, lengths in whole blocks, head sizes in whole lanes."""
  for name, x in (("q", q_BQHD), ("k", k_BSKD), ("v", v_BSKV)):
    if x.dtype not in (jnp.float32, jnp.bfloat16):
      raise ValueError(f"pallas_tpu takes float32 or bfloat16, {name} is {x.dtype}; cast it or use the xla backend")
  bq, bk = _block_sizes(kernel, q_BQHD.shape[1], k_BSKD.shape[1])
  (B, Q), S = q_BQHD.shape[:2], k_BSKD.shape[1]
  if mask.trivial:
    mask = masks.with_segments(mask, B, Q, S)
  mask = masks.fill(mask, -Q % bq, -S % bk)
  return _heads_first(q_BQHD, bq), _heads_first(k_BSKD, bk), _heads_first(v_BSKV, bk), mask, (bq, bk)


def _heads_first(x_BSHD, block):
  """[B, S, H, D] -> [B, H, S, D], with zeros up to whole blocks and lanes."""
  return jnp.pad(x_BSHD.transpose(0, 2, 1, 3), ((0, 0), (0, 0), (0, -x_BSHD.shape[1] % block), (0, -x_BSHD.shape[3] % _LANES)))


def _rows(x_BQH, block):
  """[B, Q, H] -> [B, H, 1, Q], with zeros up to whole blocks."""
  return jnp.pad(x_BQH.astype(jnp.float32).transpose(0, 2, 1)[:, :, None], ((0, 0), (0, 0), (0, 0), (0, -x_BQH.shape[1] % block)))
