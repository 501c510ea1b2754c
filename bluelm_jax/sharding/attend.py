"""Attention of arrays that are split over a mesh.

Shapes: B batch, S sequence, H heads, K key-value heads, D head size; of pages as in kernels.paged.api.
"""

import functools

import jax

from bluelm_jax.kernels.attention import api
from bluelm_jax.kernels.attention import masks
from bluelm_jax.kernels.attention import ring
from bluelm_jax.kernels.paged import api as paged
from bluelm_jax.sharding import rules


def attention(
    q_BSHD, k_BSKD, v_BSKD, *, query=(None, None), key=(None, None), causal: bool,
    rows="batch", heads="heads", implementation="auto", context_parallel="ring",
):
  """kernels.attention.api.attention's output [B, S, H, D], each device computing its own rows, heads and queries.

  Args:
    query, key: (positions, segment_ids), each int32 [B, S] or None.
    rows, heads: the logical axes of B and H; `tiles` take the whole mesh and leave sequence and heads alone.
    context_parallel: a name of ring.STRATEGIES, used where the mesh splits the sequence.

  Raises:
    ValueError: a dimension that the mesh does not divide.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or mesh.size == 1:
    out, _ = api.attention(
        q_BSHD, k_BSKD, v_BSKD, q_positions=query[0], k_positions=key[0], q_segment_ids=query[1], k_segment_ids=key[1],
        causal=causal, implementation=implementation)
    return out
  B, S, H, D = q_BSHD.shape
  split = rows == "batch" and rules.ways(mesh, "sequence") > 1
  rows = rows if B % rules.ways(mesh, rows) == 0 else None  # a row that serves all, as in generation, is computed by all
  sequence = "sequence" if split else None
  if split and (S % rules.ways(mesh, "sequence") or k_BSKD.shape[1] != S):
    raise ValueError(f"{S} queries and {k_BSKD.shape[1]} keys do not divide over {rules.ways(mesh, 'sequence')} context ranks; use mesh.context=1")
  _check_heads(k_BSKD.shape[2], mesh, heads)
  mask = masks.make(query[0], key[0], query[1], key[1], causal=causal)

  def local(q, k, v, mask):
    if split:
      return ring.attention(q, k, v, mask, axis="context", strategy=context_parallel, scale=D**-0.5, implementation=implementation)[0]
    return api.apply(q, k, v, mask, D**-0.5, implementation)[0]

  spec = functools.partial(rules.spec, mesh_axes=mesh.axis_names)
  arrays, numbers = spec([rows, sequence, heads, None]), spec([rows, sequence])
  return jax.shard_map(local, in_specs=(arrays, arrays, arrays, numbers), out_specs=arrays, check_vma=False)(q_BSHD, k_BSKD, v_BSKD, mask)


def paged_attention(q_RQHD, k_XKPD, v_XKPD, tables_RM, positions_RQ, *, k_scale=None, v_scale=None, implementation="auto"):
  """kernels.paged.api.attention, each device computing its own heads over its own part of every page.

  Rows, tables and positions are the same on all devices; the mesh's tensor ranks split H and K.

  Raises:
    ValueError: key-value heads that the mesh does not divide.
  """
  mesh = jax.sharding.get_abstract_mesh()

  def local(q, k, v, tables, positions, k_scale, v_scale):
    return paged.attention(q, k, v, tables, positions, k_scale=k_scale, v_scale=v_scale, implementation=implementation)

  args = q_RQHD, k_XKPD, v_XKPD, tables_RM, positions_RQ, k_scale, v_scale
  if mesh.empty or mesh.size == 1:
    return local(*args)
  _check_heads(k_XKPD.shape[1], mesh, "kv_heads")
  spec = functools.partial(rules.spec, mesh_axes=mesh.axis_names)
  queries, pages, lines, whole = spec([None, None, "heads", None]), spec([None, "kv_heads", None, None]), spec([None, "kv_heads", None]), spec([])
  return jax.shard_map(local, in_specs=(queries, pages, pages, whole, whole, lines, lines), out_specs=queries, check_vma=False)(*args)


def _check_heads(kv_heads: int, mesh, axis: str):
  if kv_heads % rules.ways(mesh, axis):
    raise ValueError(f"{kv_heads} key-value heads do not divide over {rules.ways(mesh, axis)} tensor ranks; lower mesh.tensor")
