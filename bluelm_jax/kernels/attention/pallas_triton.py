"""Blockwise attention for any GPU (Pallas lowered through Triton): forward, dq, and dk with dv.

Each program owns a block of queries (for dk and dv: of keys) and walks the list of the blocks it meets, made from
the mask before the kernel starts: first those that are wholly visible, without the mask, then the others. Blocks
with nothing to see are on no list. Nothing is padded in memory: loads beyond a row or a head give zeros.

Shapes: B batch, Q queries, S keys, H heads, K key-value heads, G = H / K, D head size of queries and keys, V head
size of values, I, J numbers of query and key blocks; q, s block sizes, d, v head sizes up to a power of two.
"""

import functools
import math
import typing

import jax
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
import jax.numpy as jnp

from bluelm_jax.kernels.attention import masks

_FAR = -1e30  # below every score, and finite, so that an unseen score, -inf, never meets another infinity
_LOG2E = math.log2(math.e)
_SMALLEST = 16  # a side of the tensor cores' products

LARGEST_HEAD = 256

interpret = None  # None interprets on CPU


class Sizes(typing.NamedTuple):
  """The blocks of a kernel, and how Triton spreads one program."""

  q: int
  k: int
  warps: int
  stages: int


# By the larger head size. Estimates from shared memory and registers, not tuned on a chip.
_SIZES = {
    "forward": {64: Sizes(128, 64, 4, 3), 128: Sizes(128, 64, 8, 2), 256: Sizes(64, 32, 8, 2)},
    "dq": {64: Sizes(64, 64, 4, 2), 128: Sizes(64, 64, 8, 2), 256: Sizes(32, 32, 8, 1)},
    "dkv": {64: Sizes(64, 64, 4, 2), 128: Sizes(64, 64, 8, 2), 256: Sizes(32, 32, 8, 1)},
}


def forward(q_BQHD, k_BSKD, v_BSKV, mask, scale):
  """Returns (out [B, Q, H, V], log-sum-exp float32 [B, Q, H])."""
  x = _Call("forward", q_BQHD, k_BSKD, v_BSKV, mask)
  out, lse_BHQ = x(
      functools.partial(_forward_kernel, x=x, scale=scale), x.query_grid,
      [x.queries(x.D), x.keys(x.D), x.keys(x.V)], (q_BQHD, k_BSKD, v_BSKV),
      [x.queries(x.V), x.query_rows()],
      [jax.ShapeDtypeStruct((x.B, x.Q, x.H, x.V), v_BSKV.dtype), jax.ShapeDtypeStruct((x.B, x.H, x.Q), jnp.float32)])
  return out, lse_BHQ.transpose(0, 2, 1)


def backward(q_BQHD, k_BSKD, v_BSKV, mask, scale, lse_BQH, delta_BQH, d_out_BQHV):
  """Returns (dq, dk, dv) in the dtypes of q, k and v; `lse` is finite, `delta` as api.delta gives it."""
  args = q_BQHD, k_BSKD, v_BSKV, d_out_BQHV.astype(v_BSKV.dtype), lse_BQH.transpose(0, 2, 1), delta_BQH.transpose(0, 2, 1)
  x = _Call("dq", q_BQHD, k_BSKD, v_BSKV, mask)
  dq, = x(
      functools.partial(_dq_kernel, x=x, scale=scale), x.query_grid,
      [x.queries(x.D), x.keys(x.D), x.keys(x.V), x.queries(x.V), x.query_rows(), x.query_rows()], args,
      [x.queries(x.D)], [jax.ShapeDtypeStruct(q_BQHD.shape, q_BQHD.dtype)])
  x = _Call("dkv", q_BQHD, k_BSKD, v_BSKV, mask)
  dk, dv = x(
      functools.partial(_dkv_kernel, x=x, scale=scale), x.key_grid,
      [x.group(x.D), x.key_block(x.D), x.key_block(x.V), x.group(x.V), x.group_rows(), x.group_rows()], args,
      [x.key_block(x.D), x.key_block(x.V)], [jax.ShapeDtypeStruct(y.shape, y.dtype) for y in (k_BSKD, v_BSKV)])
  return dq, dk, dv


class _Call:
  """The shapes of one kernel call, the views its programs take, and what they know of the mask."""

  def __init__(self, kernel, q_BQHD, k_BSKD, v_BSKV, mask):
    _check_dtypes(q_BQHD, k_BSKD, v_BSKV)
    (self.B, self.Q, self.H, self.D), (_, self.S, self.K, self.V) = q_BQHD.shape, v_BSKV.shape
    self.G = self.H // self.K
    self.kernel, self.sizes = kernel, _sizes(kernel, self, q_BQHD.dtype)
    q_block, k_block = self.sizes.q, self.sizes.k
    if mask.trivial and (self.Q % q_block or self.S % k_block):
      mask = masks.with_segments(mask, self.B, self.Q, self.S)
    mask = masks.fill(mask, -self.Q % q_block, -self.S % k_block)
    self.rule = mask.causal, mask.window
    self.I, self.J = pl.cdiv(self.Q, q_block), pl.cdiv(self.S, k_block)
    self.query_grid, self.key_grid = (self.I, self.H, self.B), (self.J, self.K, self.B)
    self.known = {}  # what the kernel reads of the mask; empty where everything is seen
    if mask.trivial:
      return
    classes_BIJ = masks.block_classes(mask, q_block, k_block)
    order, counts = masks.visible_blocks(classes_BIJ.transpose(0, 2, 1) if kernel == "dkv" else classes_BIJ)
    fields = ("q_positions", "k_positions", "q_segment_ids", "k_segment_ids")
    self.known = {"order": order, "counts": counts, **{name: x for name in fields if (x := getattr(mask, name)) is not None}}

  def __call__(self, kernel, grid, in_specs, args, out_specs, out_shape):
    known_specs = {name: self._known_spec(name, x) for name, x in self.known.items()}
    return pl.pallas_call(
        kernel, grid=grid, in_specs=[known_specs, *in_specs], out_specs=out_specs, out_shape=out_shape,
        compiler_params=plgpu.CompilerParams(num_warps=self.sizes.warps, num_stages=self.sizes.stages),
        interpret=interpreted(), name=f"attention_{self.kernel}")(self.known, *args)

  def _known_spec(self, name, x):
    if name in ("order", "counts"):
      return pl.BlockSpec((None, None, x.shape[-1]), lambda i, h, b: (b, i, 0))
    return pl.BlockSpec((None, x.shape[-1]), lambda i, h, b: (b, 0))

  # Views of [B, Q or S, heads, size] and [B, H, Q] for a program (block, head, row).
  def queries(self, size):
    return pl.BlockSpec((None, self.sizes.q, None, up(size)), lambda i, h, b: (b, i, h, 0))

  def query_rows(self):
    return pl.BlockSpec((None, None, self.sizes.q), lambda i, h, b: (b, h, i))

  def keys(self, size):
    return pl.BlockSpec((None, self.J * self.sizes.k, None, up(size)), lambda i, h, b: (b, 0, lax.div(h, jnp.int32(self.G)), 0))

  def key_block(self, size):
    return pl.BlockSpec((None, self.sizes.k, None, up(size)), lambda j, h, b: (b, j, h, 0))

  def group(self, size):
    return pl.BlockSpec((None, self.I * self.sizes.q, self.G, up(size)), lambda j, h, b: (b, 0, h, 0))

  def group_rows(self):
    return pl.BlockSpec((None, self.G, self.I * self.sizes.q), lambda j, h, b: (b, h, 0))


def _forward_kernel(known, q_ref, k_ref, v_ref, out_ref, lse_ref, *, x, scale):
  q_start = pl.program_id(0) * x.sizes.q
  q_qd = tile(q_ref, q_start, x.Q, x.D)

  def step(j, _, masked, carry):
    top, total, out = carry
    at = pl.ds(j * x.sizes.k, x.sizes.k)
    s = dot(q_qd, tile(k_ref.at[at], j * x.sizes.k, x.S, x.D), 1) * (scale * _LOG2E)
    if masked:
      s = jnp.where(_seen(known, x, q_start, j * x.sizes.k), s, -jnp.inf)
    new_top = jnp.maximum(top, jnp.max(s, axis=1))
    p = jnp.exp2(s - new_top[:, None])
    shrink = jnp.exp2(top - new_top)
    v_sv = tile(v_ref.at[at], j * x.sizes.k, x.S, x.V)
    return new_top, total * shrink + jnp.sum(p, axis=1), out * shrink[:, None] + dot(p.astype(v_sv.dtype), v_sv, 0)

  rows = x.sizes.q
  start = jnp.full((rows,), _FAR, jnp.float32), jnp.zeros((rows,), jnp.float32), jnp.zeros((rows, up(x.V)), jnp.float32)
  top, total, out = _walk(known, x.J, 1, step, start)
  some = top > _FAR
  safe = jnp.where(some, total, 1.0)
  put(out_ref, jnp.where(some[:, None], out / safe[:, None], 0.0), q_start, x.Q, x.V)
  put(lse_ref, jnp.where(some, (top + jnp.log2(safe)) / _LOG2E, -jnp.inf), q_start, x.Q)


def _dq_kernel(known, q_ref, k_ref, v_ref, d_out_ref, lse_ref, delta_ref, dq_ref, *, x, scale):
  q_start = pl.program_id(0) * x.sizes.q
  q_qd, d_out_qv = tile(q_ref, q_start, x.Q, x.D), tile(d_out_ref, q_start, x.Q, x.V)
  lse, delta = tile(lse_ref, q_start, x.Q) * _LOG2E, tile(delta_ref, q_start, x.Q)

  def step(j, _, masked, dq):
    at = pl.ds(j * x.sizes.k, x.sizes.k)
    k_sd, v_sv = tile(k_ref.at[at], j * x.sizes.k, x.S, x.D), tile(v_ref.at[at], j * x.sizes.k, x.S, x.V)
    s = dot(q_qd, k_sd, 1) * (scale * _LOG2E)
    if masked:
      s = jnp.where(_seen(known, x, q_start, j * x.sizes.k), s, -jnp.inf)
    ds = jnp.exp2(s - lse[:, None]) * (dot(d_out_qv, v_sv, 1) - delta[:, None])
    return dq + dot(ds.astype(k_sd.dtype), k_sd, 0)

  dq = _walk(known, x.J, 1, step, jnp.zeros(q_qd.shape, jnp.float32))
  put(dq_ref, dq * scale, q_start, x.Q, x.D)


def _dkv_kernel(known, q_ref, k_ref, v_ref, d_out_ref, lse_ref, delta_ref, dk_ref, dv_ref, *, x, scale):
  k_start = pl.program_id(0) * x.sizes.k
  k_sd, v_sv = tile(k_ref, k_start, x.S, x.D), tile(v_ref, k_start, x.S, x.V)

  def step(i, g, masked, carry):  # scores are [s, q], so that they enter the products as they are
    dk, dv = carry
    q_start = i * x.sizes.q
    at = pl.ds(q_start, x.sizes.q)
    q_qd, d_out_qv = tile(q_ref.at[at, g], q_start, x.Q, x.D), tile(d_out_ref.at[at, g], q_start, x.Q, x.V)
    lse, delta = tile(lse_ref.at[g, at], q_start, x.Q) * _LOG2E, tile(delta_ref.at[g, at], q_start, x.Q)
    s = dot(k_sd, q_qd, 1) * (scale * _LOG2E)
    if masked:
      s = jnp.where(_seen(known, x, q_start, k_start, keys_first=True), s, -jnp.inf)
    p = jnp.exp2(s - lse[None])
    ds = p * (dot(v_sv, d_out_qv, 1) - delta[None])
    return dk + dot(ds.astype(q_qd.dtype), q_qd, 0), dv + dot(p.astype(d_out_qv.dtype), d_out_qv, 0)

  dk, dv = _walk(known, x.I, x.G, step, (jnp.zeros(k_sd.shape, jnp.float32), jnp.zeros(v_sv.shape, jnp.float32)))
  put(dk_ref, dk * scale, k_start, x.S, x.D)
  put(dv_ref, dv, k_start, x.S, x.V)


def _walk(known, blocks, heads, step, carry):
  """Runs step(block, head, masked, carry) over the program's list of blocks, and within a block over the heads."""
  def over(first, last, masked, carry):
    def one(n, carry):
      n, g = (n, jnp.int32(0)) if heads == 1 else (lax.div(n, jnp.int32(heads)), lax.rem(n, jnp.int32(heads)))
      return step(known["order"][n] if known else n, g, masked, carry)
    return lax.fori_loop(first * heads, last * heads, one, carry)

  if not known:
    return over(jnp.int32(0), jnp.int32(blocks), False, carry)
  whole, seen = known["counts"][0], known["counts"][1]
  return over(whole, seen, True, over(jnp.int32(0), whole, False, carry))


def _seen(known, x, q_start, k_start, keys_first=False):
  """bool [q, s] (or [s, q]) of a pair of blocks."""
  def rows(name, start, size, column):
    if name not in known:
      return None
    ids = known[name][pl.ds(start, size)]
    return ids[:, None] if column else ids[None, :]
  q = [rows(name, q_start, x.sizes.q, not keys_first) for name in ("q_positions", "q_segment_ids")]
  k = [rows(name, k_start, x.sizes.k, keys_first) for name in ("k_positions", "k_segment_ids")]
  return masks.pairs(*q, *k, *x.rule)


def _inside(shape, start, length, size):
  """bool [rows, columns] of a tile's part within `length` rows and `size` columns; None for all of it."""
  rows = None if length % shape[0] == 0 else start + jnp.arange(shape[0], dtype=jnp.int32) < length
  if len(shape) == 1:
    return rows
  columns = None if size == shape[1] else (jnp.arange(shape[1], dtype=jnp.int32) < size)[None, :]
  if rows is None or columns is None:
    part = columns if rows is None else rows[:, None]
    return None if part is None else jnp.broadcast_to(part, shape)
  return rows[:, None] & columns


def tile(ref, start, length, size=None):
  """The tile that begins at row `start`, zero beyond `length` rows and `size` columns."""
  inside = _inside(ref.shape, start, length, size)
  return plgpu.load(ref, mask=inside, other=None if inside is None else 0.0)


def put(ref, value, start, length, size=None):
  plgpu.store(ref, value.astype(ref.dtype), mask=_inside(ref.shape, start, length, size))


def dot(a, b, b_axis):
  """a @ b (b_axis 0) or a @ b.T (b_axis 1), summed in float32; float32 inputs are not rounded."""
  return lax.dot_general(
      a, b, (((1,), (b_axis,)), ((), ())), preferred_element_type=jnp.float32,
      precision=lax.Precision.HIGHEST if a.dtype == jnp.float32 else None)


def _sizes(kernel, x, dtype) -> Sizes:
  head = max(up(x.D), up(x.V), min(_SIZES[kernel]))
  if head > LARGEST_HEAD:
    raise ValueError(f"head sizes {x.D} and {x.V} are above {LARGEST_HEAD}; use implementation='xla'")
  sizes = _SIZES[kernel][head]
  if dtype == jnp.float32:  # twice the bytes
    sizes = sizes._replace(q=sizes.q // 2, k=max(_SMALLEST, sizes.k // 2))
  return sizes._replace(q=min(sizes.q, up(x.Q)), k=min(sizes.k, up(x.S)))


def up(n: int) -> int:
  """The power of two that holds n, no smaller than a product's side."""
  return max(_SMALLEST, pl.next_power_of_2(n))


def _check_dtypes(q, k, v):
  if not q.dtype == k.dtype == v.dtype or q.dtype not in (jnp.float32, jnp.bfloat16, jnp.float16):
    raise ValueError(
        f"attention of {q.dtype} queries, {k.dtype} keys and {v.dtype} values has no Triton kernel; "
        "cast all to float32, bfloat16 or float16, or use implementation='xla'")


def interpreted() -> bool:
  from bluelm_jax.kernels.attention import api  # it loads this module by name

  return api.target_platform() == "cpu" if interpret is None else interpret
