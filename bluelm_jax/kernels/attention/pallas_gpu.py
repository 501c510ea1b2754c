"""Blockwise attention for Hopper GPUs (Pallas lowered through Mosaic GPU): forward, dq, and dk with dv.

A program has three warpgroups (FlashAttention-3, arXiv 2407.08608): two compute, each with 64 rows of the program's
block in its registers, and one loads what they meet into a ring of shared memory through the tensor memory
accelerator. The blocks met stand in a list made from the mask before the kernel starts: first those that are
wholly visible, which skip the mask, then the others; those with nothing to see are on no list. The loader reads
the list; the others count. Forward and dq mask the first block in any case, and take one where there is none.

The tensor cores do not wait for the softmax: a step starts the scores of its block and the sum over the block before,
and works on the scores while the sum is made (`_in_flight`). Forward and dq have a program a processor, which goes
from tile to tile and loads the next one's blocks while it ends the last; the longest tiles come first.

A slot of the ring has two barriers: `ready`, where each copy into the slot arrives, and `free`, where both compute
warpgroups arrive when they no longer read it. All three walk the same number of steps, so each waits for every
phase of a barrier exactly once.

Shapes: B batch, Q queries, S keys, H heads, K key-value heads, G = H / K, D head size of queries and keys, V head
size of values, I, J numbers of query and key blocks, R what is known of a row for the mask (position, segment id);
q, s block sizes, r the 64 rows of a warpgroup.
"""

import functools
import importlib.metadata
import math
import re
import types
import typing

import jax
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
import jax.numpy as jnp

from bluelm_jax.kernels.attention import api
from bluelm_jax.kernels.attention import masks
from bluelm_jax.kernels.attention import pallas_triton

_FAR = -1e30  # below every score, and finite, so that an unseen score, -inf, never meets another infinity
_LOG2E = math.log2(math.e)
_ROWS, _WORKERS = 64, 2  # rows of a warpgroup's matrix products; warpgroups that compute
_BLOCK = _ROWS * _WORKERS  # queries of a program (dk, dv: keys)
_LOADER = _WORKERS
_LARGEST_D, _LARGEST_V = 192, 128  # what the registers hold
_FEWEST_QUERIES = 64  # below, a program's block is mostly empty

interpret = None  # tests put plgpu's interpreter parameters here


class Sizes(typing.NamedTuple):
  """Rows of a slot (keys; dk, dv: queries) and the slots of the ring."""

  rows: int
  slots: int


# By the head size up to which they hold. For 128 the best of those tried on an H100; the others are estimates from registers
# and shared memory.
_SIZES = {
    "forward": {64: Sizes(128, 3), 128: Sizes(128, 2), 192: Sizes(64, 3)},
    "dq": {64: Sizes(64, 3), 128: Sizes(64, 3), 192: Sizes(64, 3)},
    "dkv": {64: Sizes(64, 3), 128: Sizes(64, 2), 192: Sizes(32, 2)},
}


def choice(q_BQHD, k_BSKD, v_BSKV) -> tuple[str, str]:
  """What "auto" takes on a GPU, and why."""
  kind, (D, V) = api.target_device_kind(), (q_BQHD.shape[-1], v_BSKV.shape[-1])
  if max(D, V) > pallas_triton.LARGEST_HEAD:
    return "xla", f"no kernel takes head sizes {D} and {V}"
  # By name: while a program is traced for a described mesh, that is all the mesh tells of its chips.
  if not re.search(r"\bG?H(20|100|200|800)\b", kind):
    return "pallas_triton", f"{kind} is not a Hopper GPU"
  if not _dtypes_fit(q_BQHD, k_BSKD, v_BSKV):
    return "pallas_triton", f"Hopper kernels take no {q_BQHD.dtype}"
  if D > _LARGEST_D or V > _LARGEST_V:
    return "pallas_triton", f"Hopper kernels take no head sizes {D} and {V}"
  if q_BQHD.shape[1] < _FEWEST_QUERIES:
    return "pallas_triton", "few queries"
  if _flawed_assembler():
    return "pallas_triton", f"assembler {_flawed_assembler()} miscompiles masks on Hopper"
  return "pallas_gpu", kind


def forward(q_BQHD, k_BSKD, v_BSKV, mask, scale):
  """Returns (out [B, Q, H, V], log-sum-exp float32 [B, Q, H])."""
  x = _Call("forward", q_BQHD, k_BSKD, v_BSKV, mask)
  out_tile = {} if x.D == x.V else {"out_rV": x.own_tile(x.V)}
  out, lse_BHQ = x.run(
      functools.partial(_forward_worker, x=x, scale=scale), _load_keys,
      x.inputs,
      {"out": jax.ShapeDtypeStruct((x.B, x.Q, x.H, x.V), x.dtype), "lse": jax.ShapeDtypeStruct((x.B, x.H, x.Q), jnp.float32)},
      {"q_rD": x.own_tile(x.D), "lse_r": plgpu.SMEM((_WORKERS, _ROWS), jnp.float32), **out_tile,
       "k_sD": x.slot_tile(x.D), "v_sV": x.slot_tile(x.V), **x.info()},
      {"own": plgpu.Barrier(num_arrivals=1 + x.informed, num_barriers=_WORKERS),
       **x.ring("k", 1 + x.informed), **x.ring("v", 1)})
  return out[:, : q_BQHD.shape[1], :, : v_BSKV.shape[-1]], lse_BHQ[:, :, : q_BQHD.shape[1]].transpose(0, 2, 1)


def backward(q_BQHD, k_BSKD, v_BSKV, mask, scale, lse_BQH, delta_BQH, d_out_BQHV):
  """Returns (dq, dk, dv) in the dtypes of q, k and v; `lse` is finite, `delta` as api.delta gives it."""
  args = q_BQHD, k_BSKD, v_BSKV, mask, scale, lse_BQH, delta_BQH, d_out_BQHV.astype(v_BSKV.dtype)
  return _backward_queries(*args), *_backward_keys(*args)


def _backward_queries(q_BQHD, k_BSKD, v_BSKV, mask, scale, lse_BQH, delta_BQH, d_out_BQHV):
  x = _Call("dq", q_BQHD, k_BSKD, v_BSKV, mask)
  row = plgpu.SMEM((_WORKERS, _ROWS), jnp.float32)
  dq = x.run(
      functools.partial(_dq_worker, x=x, scale=scale), _load_keys,
      {**x.inputs, "d_out": x.pad(d_out_BQHV, x.Q, x.V), "lse": x.pad_rows(lse_BQH), "delta": x.pad_rows(delta_BQH)},
      {"dq": jax.ShapeDtypeStruct((x.B, x.Q, x.H, x.D), x.dtype)},
      {"q_rD": x.own_tile(x.D), "d_out_rV": x.own_tile(x.V), "lse_r": row, "delta_r": row,
       "k_sD": x.slot_tile(x.D), "v_sV": x.slot_tile(x.V), **x.info()},
      {"own": plgpu.Barrier(num_arrivals=4 + x.informed, num_barriers=_WORKERS),
       **x.ring("k", 1 + x.informed), **x.ring("v", 1)})[0]
  return dq[:, : q_BQHD.shape[1], :, : q_BQHD.shape[-1]]


def _backward_keys(q_BQHD, k_BSKD, v_BSKV, mask, scale, lse_BQH, delta_BQH, d_out_BQHV):
  x = _Call("dkv", q_BQHD, k_BSKD, v_BSKV, mask)
  row = plgpu.SMEM((x.slots, x.rows), jnp.float32)
  dk, dv = x.run(
      functools.partial(_dkv_worker, x=x, scale=scale), _load_queries,
      {**x.inputs, "d_out": x.pad(d_out_BQHV, x.Q, x.V), "lse": x.pad_rows(lse_BQH), "delta": x.pad_rows(delta_BQH)},
      {name: jax.ShapeDtypeStruct((x.B, x.S, x.K, size), x.dtype) for name, size in (("dk", x.D), ("dv", x.V))},
      {"k_rD": x.own_tile(x.D), "v_rV": x.own_tile(x.V),
       "q_qD": x.slot_tile(x.D), "d_out_qV": x.slot_tile(x.V), "lse_q": row, "delta_q": row, **x.info()},
      {"own": plgpu.Barrier(num_arrivals=2 + x.informed, num_barriers=_WORKERS),
       **x.ring("q", 2 + x.informed), **x.ring("d_out", 2)})
  cut = lambda y, like: y[:, : like.shape[1], :, : like.shape[-1]]
  return cut(dk, k_BSKD), cut(dv, v_BSKV)


class _Call:
  """The padded shapes of one kernel call, its memory, and what it knows of the mask."""

  def __init__(self, kernel, q_BQHD, k_BSKD, v_BSKV, mask):
    _check(q_BQHD, k_BSKD, v_BSKV, mask)
    (self.B, Q, self.H, D), (_, S, self.K, V) = q_BQHD.shape, v_BSKV.shape
    self.kernel, self.dtype, self.G = kernel, q_BQHD.dtype, self.H // self.K
    self.D, self.V = _whole(D, 32), _whole(V, 32)
    self.rows, self.slots = _SIZES[kernel][min(size for size in _SIZES[kernel] if size >= max(self.D, self.V))]
    q_block, k_block = (self.rows, _BLOCK) if kernel == "dkv" else (_BLOCK, self.rows)
    self.Q, self.S = _whole(Q, q_block), _whole(S, k_block)
    if mask.trivial and (self.Q > Q or self.S > S):
      mask = masks.with_segments(mask, self.B, Q, S)
    mask = masks.fill(mask, self.Q - Q, self.S - S)
    self.inputs = {
        "q": self.pad(q_BQHD, self.Q, self.D), "k": self.pad(k_BSKD, self.S, self.D), "v": self.pad(v_BSKV, self.S, self.V)}
    self.I, self.J = self.Q // q_block, self.S // k_block
    self.rule = mask.causal, mask.window
    self.positions, self.segments = mask.causal, mask.q_segment_ids is not None
    self.informed = int(not mask.trivial)  # copies that a block's part of the mask takes
    self.known = {}  # what the kernel reads of the mask; empty where everything is seen
    if self.informed:
      classes_BIJ = masks.block_classes(mask, q_block, k_block)
      order, counts = masks.visible_blocks(classes_BIJ.transpose(0, 2, 1) if kernel == "dkv" else classes_BIJ)
      info = lambda *rows: jnp.stack([x for x in rows if x is not None], axis=1)  # [B, R, Q or S]
      tiles = jnp.argsort((counts[..., 0] - 3 * counts[..., 1]).reshape(-1))  # those that take longest first; a mask costs half a block
      self.known = {"tiles": tiles.astype(jnp.int32), "order": order, "counts": counts, "q_info": info(mask.q_positions, mask.q_segment_ids),
                    "k_info": info(mask.k_positions, mask.k_segment_ids)}

  def run(self, work, load, inputs, outputs, memory, barriers):
    """Runs the kernel; returns the arrays of `outputs`."""
    inputs = {**self.known, **inputs}
    names = (*inputs, *outputs)
    blocks, heads = (self.J, self.K) if self.kernel == "dkv" else (self.I, self.H)
    tiles = self.B * blocks * heads
    # Programs that stay load a tile's blocks while they end the one before; dk and dv gain nothing by it.
    programs = tiles if self.kernel == "dkv" else min(api.target_processors(), tiles)

    def body(*refs, **scratch):
      m = _Memory(**dict(zip(names, refs, strict=True)), **scratch)
      program, me = lax.axis_index("program"), lax.axis_index("warpgroup")
      # Each program takes a tile of each round, in turn from the front and from the back, so that all get equal shares.
      place = lambda round: jnp.where(round % 2 == 0, program, programs - 1 - program)
      rounds, rest = divmod(tiles, programs)
      rounds = rounds + (place(jnp.int32(rounds)) < rest).astype(jnp.int32)

      def each(one):
        """Steps in all, where one(block, row, head, steps before) gives the steps up to the tile's end."""
        def tile(round, steps):
          n = round * programs + place(round)
          pair, head = lax.div(n, jnp.int32(heads)), lax.rem(n, jnp.int32(heads))
          pair = m.tiles[pair] if self.informed else pair
          return one(lax.rem(pair, jnp.int32(blocks)), lax.div(pair, jnp.int32(blocks)), head, steps)
        return tile(0, jnp.int32(0)) if programs == tiles else lax.fori_loop(0, rounds, tile, jnp.int32(0))

      @pl.when(me < _WORKERS)
      def _():
        plgpu.set_max_registers(240, action="increase")
        each(lambda *tile: work(m, me, *tile))

      @pl.when(me == _LOADER)
      def _():
        plgpu.set_max_registers(24, action="decrease")
        steps = each(lambda *tile: load(self, m, *tile))
        _leave(self, m, steps)

    body.__name__ = f"attention_{self.kernel}"  # the kernel's
    return plgpu.kernel(
        body, out_type=tuple(outputs.values()), scratch_types={**memory, **barriers},
        grid=(programs,), grid_names=("program",), num_threads=_WORKERS + 1, thread_name="warpgroup",
        compiler_params=plgpu.CompilerParams(approx_math=True), interpret=interpret)(*inputs.values())

  def own_tile(self, size):
    return self._tile(_WORKERS, _ROWS, size)

  def slot_tile(self, size):
    return self._tile(self.slots, self.rows, size)

  def _tile(self, count, rows, size):
    """`count` matrices in shared memory, laid out for matrix products."""
    # In bytes; columns, and rows that a product sums over, come in whole swizzles.
    swizzle = 128 if size % 64 == self.rows % 64 == 0 else 64
    transforms = plgpu.TilingTransform((8, swizzle // self.dtype.itemsize)), plgpu.SwizzleTransform(swizzle)
    return plgpu.SMEM((count, rows, size), self.dtype, transforms=transforms)

  def info(self):
    """Places for what the mask says of the workers' rows and of the slots'."""
    places = lambda *shape: plgpu.SMEM(shape, jnp.int32)
    known = self.positions + self.segments
    return {"own_info": places(_WORKERS, known, _ROWS), "slot_info": places(self.slots, known, self.rows)} if known else {}

  def ring(self, name, copies):
    return {f"{name}_ready": plgpu.Barrier(num_arrivals=copies, num_barriers=self.slots),
            f"{name}_free": plgpu.Barrier(num_arrivals=_WORKERS, num_barriers=self.slots)}

  def pad(self, x_BNHE, length, size):
    _, N, _, E = x_BNHE.shape
    return x_BNHE if (N, E) == (length, size) else jnp.pad(x_BNHE, ((0, 0), (0, length - N), (0, 0), (0, size - E)))

  def pad_rows(self, x_BQH):
    x_BHQ = x_BQH.astype(jnp.float32).transpose(0, 2, 1)
    return jnp.pad(x_BHQ, ((0, 0), (0, 0), (0, self.Q - x_BHQ.shape[-1])))


class _Memory(types.SimpleNamespace):
  """The references of a kernel by name."""


def _forward_worker(m, me, block, row, head, steps, *, x, scale):
  rows = pl.ds(block * _BLOCK + me * _ROWS, _ROWS)
  q_rD, out_rV = m.q_rD.at[me], (m.q_rD if x.D == x.V else m.out_rV).at[me]
  _fetch_own(m, me, [(m.q.at[row, rows, head], m.q_rD), *_info(x, m, "q_info", "own_info", row, rows)])

  def softmax(s, slot, masked, top, total):
    if masked:
      s = jnp.where(_seen(x, m, me, slot), s, -jnp.inf)
    plgpu.barrier_arrive(m.k_free.at[slot])
    new_top = jnp.maximum(top, jnp.max(s, axis=1) * (scale * _LOG2E))
    p = jnp.exp2(s * (scale * _LOG2E) - _across(new_top, x.rows))
    shrink = jnp.exp2(top - new_top)
    return p, new_top, total * shrink + jnp.sum(p, axis=1), shrink

  def scores(slot):
    plgpu.barrier_wait(m.k_ready.at[slot])
    return x.rows, q_rD, plgpu.transpose_ref(m.k_sD.at[slot], (1, 0))

  def first(slot):
    s, = _in_flight([scores(slot)], lambda s: (s(),))
    p, top, total, _ = softmax(s, slot, x.informed, _column(_FAR), _column(0.0))
    return top, total, _matrix(x.V), p.astype(x.dtype)

  def step(n, masked, carry):
    top, total, out, p = carry
    slot, before = _slots(x, n)
    plgpu.barrier_wait(m.v_ready.at[before])

    def use(s, out):  # the softmax while the sum is made
      p, new_top, new_total, shrink = softmax(s(), slot, masked, top, total)
      p, shrink, out = lax.optimization_barrier((p, shrink, out()))
      return new_top, new_total, out * _across(shrink, x.V), p.astype(x.dtype)

    carry = _in_flight([scores(slot), (out, p, m.v_sV.at[before])], use)
    plgpu.barrier_arrive(m.v_free.at[before])
    return carry

  steps, (top, total, out, p) = _walk(x, m, block, row, steps, step, first)
  last, _ = _slots(x, steps - 1)
  plgpu.barrier_wait(m.v_ready.at[last])
  out, = _add_products((out, p, m.v_sV.at[last]))
  plgpu.barrier_arrive(m.v_free.at[last])
  some = top > _FAR
  safe = jnp.where(some, total, 1.0)
  out_rV[...] = (out * _across(jnp.where(some, 1.0 / safe, 0.0), x.V)).astype(x.dtype)
  m.lse_r[me] = jnp.where(some, top / _LOG2E + jnp.log(safe), -jnp.inf)
  _store([(out_rV, m.out.at[row, rows, head]), (m.lse_r.at[me], m.lse.at[row, head, rows])])
  return steps


def _dq_worker(m, me, block, row, head, steps, *, x, scale):
  rows = pl.ds(block * _BLOCK + me * _ROWS, _ROWS)
  q_rD, d_out_rV = m.q_rD.at[me], m.d_out_rV.at[me]
  _fetch_own(m, me, [
      (m.q.at[row, rows, head], m.q_rD), (m.d_out.at[row, rows, head], m.d_out_rV), (m.lse.at[row, head, rows], m.lse_r),
      (m.delta.at[row, head, rows], m.delta_r), *_info(x, m, "q_info", "own_info", row, rows)])
  lse, delta = (plgpu.load(y, me, layout=_DOWN) for y in (m.lse_r, m.delta_r))
  lse *= _LOG2E

  def products(slot):
    plgpu.barrier_wait(m.k_ready.at[slot])
    plgpu.barrier_wait(m.v_ready.at[slot])
    return [(x.rows, q_rD, plgpu.transpose_ref(m.k_sD.at[slot], (1, 0))),
            (x.rows, d_out_rV, plgpu.transpose_ref(m.v_sV.at[slot], (1, 0)))]

  def gradient(s, dp, slot, masked, lse, delta):
    s = s()
    if masked:
      s = jnp.where(_seen(x, m, me, slot), s, -jnp.inf)
    p = jnp.exp2(s * (scale * _LOG2E) - _across(lse, x.rows))
    dp = dp()
    plgpu.barrier_arrive(m.v_free.at[slot])
    return p * (dp - _across(delta, x.rows))

  def first(slot):
    ds = _in_flight(products(slot), lambda s, dp: gradient(s, dp, slot, x.informed, lse, delta))
    return _matrix(x.D), ds.astype(x.dtype), lse, delta

  def step(n, masked, carry):
    dq, ds, lse, delta = carry
    slot, before = _slots(x, n)

    def use(s, dp, dq):
      ds, dq = lax.optimization_barrier((gradient(s, dp, slot, masked, lse, delta), dq()))
      return dq, ds.astype(x.dtype), lse, delta

    carry = _in_flight([*products(slot), (dq, ds, m.k_sD.at[before])], use)
    plgpu.barrier_arrive(m.k_free.at[before])
    return carry

  steps, (dq, ds, _, _) = _walk(x, m, block, row, steps, step, first)
  last, _ = _slots(x, steps - 1)
  dq, = _add_products((dq, ds, m.k_sD.at[last]))
  plgpu.barrier_arrive(m.k_free.at[last])
  q_rD[...] = (dq * scale).astype(x.dtype)
  _store([(q_rD, m.dq.at[row, rows, head])])
  return steps


def _dkv_worker(m, me, block, row, head, steps, *, x, scale):
  rows = pl.ds(block * _BLOCK + me * _ROWS, _ROWS)
  k_rD, v_rV = m.k_rD.at[me], m.v_rV.at[me]
  _fetch_own(m, me, [
      (m.k.at[row, rows, head], m.k_rD), (m.v.at[row, rows, head], m.v_rV), *_info(x, m, "k_info", "own_info", row, rows)])

  def step(n, masked, carry):  # scores are [r keys, q queries], so that they enter the products from registers
    dk, dv = carry
    slot, _ = _slots(x, n)
    q_qD, d_out_qV = m.q_qD.at[slot], m.d_out_qV.at[slot]
    plgpu.barrier_wait(m.q_ready.at[slot])
    plgpu.barrier_wait(m.d_out_ready.at[slot])

    def use(s, dp):
      s = s()
      if masked:
        s = jnp.where(_seen(x, m, me, slot), s, -jnp.inf)
      lse = plgpu.load(m.lse_q, slot, layout=_ALONG) * _LOG2E
      p = jnp.exp2(s * (scale * _LOG2E) - _down(lse))
      p, dp = lax.optimization_barrier((p, dp()))
      delta = plgpu.load(m.delta_q, slot, layout=_ALONG)
      return p.astype(x.dtype), (p * (dp - _down(delta))).astype(x.dtype)

    p, ds = _in_flight([(x.rows, k_rD, plgpu.transpose_ref(q_qD, (1, 0))), (x.rows, v_rV, plgpu.transpose_ref(d_out_qV, (1, 0)))], use)
    dv, dk = _add_products((dv, p, d_out_qV), (dk, ds, q_qD))
    plgpu.barrier_arrive(m.d_out_free.at[slot])
    plgpu.barrier_arrive(m.q_free.at[slot])
    return dk, dv

  steps, (dk, dv) = _walk(x, m, block, row, steps, step, lambda _: (_matrix(x.D), _matrix(x.V)))
  k_rD[...] = (dk * scale).astype(x.dtype)
  v_rV[...] = dv.astype(x.dtype)
  _store([(k_rD, m.dk.at[row, rows, head]), (v_rV, m.dv.at[row, rows, head])])
  return steps


def _slots(x, n):
  """The slot of step n, and of the step before."""
  return lax.rem(n, jnp.int32(x.slots)), lax.rem(n + (x.slots - 1), jnp.int32(x.slots))


def _load_keys(x, m, block, row, head, steps):
  """Loads the blocks of keys and values that a block of queries meets."""
  kv_head = lax.div(head, jnp.int32(x.G))

  def load(n, step):
    j = m.order[row, block, n] if x.informed else n
    keys = pl.ds(j * x.rows, x.rows)
    _refill(x, step, m.k_ready, m.k_free, [
        (m.k.at[row, keys, kv_head], m.k_sD), *_info(x, m, "k_info", "slot_info", row, keys)])
    _refill(x, step, m.v_ready, m.v_free, [(m.v.at[row, keys, kv_head], m.v_sV)])

  return _each(x, m, block, row, steps, load)


def _load_queries(x, m, block, row, kv_head, steps):
  """Loads the blocks of queries that meet a block of keys, and in each all heads of the group."""
  def load(n, step):
    n_block, g = lax.div(n, jnp.int32(x.G)), lax.rem(n, jnp.int32(x.G))
    i = m.order[row, block, n_block] if x.informed else n_block
    queries, head = pl.ds(i * x.rows, x.rows), kv_head * x.G + g
    _refill(x, step, m.q_ready, m.q_free, [
        (m.q.at[row, queries, head], m.q_qD), (m.lse.at[row, head, queries], m.lse_q),
        *_info(x, m, "q_info", "slot_info", row, queries)])
    _refill(x, step, m.d_out_ready, m.d_out_free, [
        (m.d_out.at[row, queries, head], m.d_out_qV), (m.delta.at[row, head, queries], m.delta_q)])

  return _each(x, m, block, row, steps, load)


def _counts(x, m, block, row):
  """How many steps meet wholly visible blocks, and how many there are in all."""
  heads, blocks = (x.G, x.I) if x.kernel == "dkv" else (1, x.J)
  if not x.informed:
    return jnp.int32(blocks * heads), jnp.int32(blocks * heads)
  return m.counts[row, block, 0] * heads, jnp.maximum(m.counts[row, block, 1], int(x.kernel != "dkv")) * heads


def _walk(x, m, block, row, steps, step, first):
  """Carries `first(slot)` through a tile's steps, of which it makes one itself unless the kernel is "dkv".

  Returns the steps up to the tile's end, and the carry.
  """
  whole, seen = _counts(x, m, block, row)
  begin = int(x.kernel != "dkv")
  carry = first(_slots(x, steps)[0])
  carry = lax.fori_loop(steps + begin, steps + whole, lambda n, carry: step(n, False, carry), carry)
  if x.informed:
    carry = lax.fori_loop(steps + jnp.maximum(whole, begin), steps + seen, lambda n, carry: step(n, True, carry), carry)
  return steps + seen, carry


def _each(x, m, block, row, steps, load):
  _, seen = _counts(x, m, block, row)
  lax.fori_loop(0, seen, lambda n, _: load(n, steps + n), None)
  return steps + seen


def _leave(x, m, steps):
  """Waits for the last phases of a ring, so that none is left when its barriers go."""
  frees = (m.q_free, m.d_out_free) if x.kernel == "dkv" else (m.k_free, m.v_free)

  def wait(n, _):
    for free in frees:
      plgpu.barrier_wait(free.at[lax.rem(n, jnp.int32(x.slots))])

  lax.fori_loop(jnp.maximum(steps, x.slots), steps + x.slots, wait, None)


def _refill(x, step, ready, free, copies):
  """Fills a step's slot once both workers have left what it held before."""
  slot, _ = _slots(x, step)

  @pl.when(step >= x.slots)
  def _():
    plgpu.barrier_wait(free.at[slot])

  for source, places in copies:
    plgpu.copy_gmem_to_smem(source, places.at[slot], ready.at[slot])


def _fetch_own(m, me, copies):
  """Loads a warpgroup's own rows and waits for them."""
  for source, places in copies:
    plgpu.copy_gmem_to_smem(source, places.at[me], m.own.at[me])
  plgpu.barrier_wait(m.own.at[me])


def _info(x, m, known, places, row, span):
  """The copy of what the mask says of a span of a row; none where everything is seen."""
  return [(getattr(m, known).at[row, :, span], getattr(m, places))] if x.informed else []


def _store(copies):
  plgpu.commit_smem()  # the copies read past the caches that the registers were written to
  for source, place in copies:
    plgpu.copy_smem_to_gmem(source, place)
  plgpu.wait_smem_to_gmem(0)


# Layouts of what stands beside a [64, n] matrix in registers: a number for each of its rows, or of its columns.
_DOWN, _ALONG = plgpu.Layout.WGMMA.reduce(1), plgpu.Layout.WGMMA.reduce(0)


def _matrix(columns):
  return plgpu.layout_cast(jnp.zeros((_ROWS, columns), jnp.float32), plgpu.Layout.WGMMA)


def _column(value):
  return plgpu.layout_cast(jnp.full((_ROWS,), value, jnp.float32), _DOWN)


def _across(x_r, columns):
  return lax.broadcast_in_dim(x_r, (_ROWS, columns), [0])


def _down(x_n):
  return lax.broadcast_in_dim(x_n, (_ROWS, x_n.shape[0]), [1])


def _in_flight(terms, use):
  """Starts sum + a @ b, in float32, for each (sum, a, b); `use(*takes)` while they are made.

  A sum is an array [64, n] or, for zeros, its n; `a` is in registers or shared memory. A take waits for its product
  and those before it. What `use` returns must have taken the last.
  """
  def body(*refs):
    for ref, (total, _, _) in zip(refs, terms):
      if not isinstance(total, int):
        ref[...] = total
    for ref, (_, a, b) in zip(refs, terms):
      plgpu.wgmma(ref, a, b)
    later = range(len(terms) - 1, -1, -1)
    return use(*(functools.partial(plgpu.wgmma_accumulator_load, ref, wait_n=n) for ref, n in zip(refs, later)))

  shapes = ((_ROWS, total) if isinstance(total, int) else total.shape for total, _, _ in terms)
  return pl.run_scoped(body, *(plgpu.ACC(shape, jnp.float32) for shape in shapes))


def _add_products(*terms):
  """sum + a @ b for each (sum, a, b); waits for all together."""
  return _in_flight(terms, lambda *takes: [take() for take in takes])


def _seen(x, m, me, slot):
  """bool [64, n]: the rule of the mask for a warpgroup's rows and a slot's."""
  rows = x.positions + x.segments
  own = [_across(plgpu.load(m.own_info, (me, row), layout=_DOWN), x.rows) for row in range(rows)]
  met = [_down(plgpu.load(m.slot_info, (slot, row), layout=_ALONG)) for row in range(rows)]
  q, k = (met, own) if x.kernel == "dkv" else (own, met)
  field = lambda info: (info[0] if x.positions else None, info[-1] if x.segments else None)
  return masks.pairs(*field(q), *field(k), *x.rule)


def _whole(n: int, multiple: int) -> int:
  return -(-n // multiple) * multiple


def _dtypes_fit(q, k, v) -> bool:
  return q.dtype == k.dtype == v.dtype and q.dtype in (jnp.bfloat16, jnp.float16)


def _check(q, k, v, mask):
  if api.target_platform() == "cpu" and interpret is None:
    raise ValueError("pallas_gpu runs on Hopper GPUs alone; use implementation='pallas_triton' or 'xla' on CPU")
  if not _dtypes_fit(q, k, v):
    raise ValueError(
        f"attention of {q.dtype} queries, {k.dtype} keys and {v.dtype} values has no Hopper kernel; "
        "cast all to bfloat16 or float16, or use implementation='pallas_triton'")
  D, V = q.shape[-1], v.shape[-1]
  if D > _LARGEST_D or V > _LARGEST_V:
    raise ValueError(f"head sizes {D} and {V} are above {_LARGEST_D} and {_LARGEST_V}; use implementation='pallas_triton'")
  if _flawed_assembler() and not mask.trivial:
    raise ValueError(f"assembler {_flawed_assembler()} miscompiles masks on Hopper; install nvidia-cuda-nvcc-cu12>=12.9.86")


@functools.cache
def _flawed_assembler() -> str | None:
  """The version of the installed ptxas where it is of CUDA 12.8 or 12.9.0, as JAX's own Hopper attention refuses too."""
  try:
    version = importlib.metadata.version("nvidia-cuda-nvcc-cu12")
  except importlib.metadata.PackageNotFoundError:
    return None  # another CUDA, or one of the system
  number = tuple(int(part) for part in version.split(".")[:3])
  return version if (12, 8) <= number < (12, 9, 86) else None
