"""Blockwise attention in plain XLA: memory linear in the sequence, and nothing computed for unseen blocks.

Shapes: B batch, Q queries, S keys, K key-value heads, G query heads per KV head, H = K G, D head size,
V head size of values; I, J numbers of query and key blocks, q, s their sizes; N = B K, R = G q: products are plain
batches of matrices, which XLA's CPU backend does best.
"""

import functools

import jax
import jax.numpy as jnp

from bluelm_jax.kernels.attention import masks

_FAR = -1e30  # finite, so that no infinities meet; its exponential is 0
_BLOCK = 256
_WHOLE = 512 * 512  # a head's score matrix up to this is one block: loops cost more than they skip


def forward(q_BQHD, k_BSKD, v_BSKV, mask, scale):
  """Returns (out [B, Q, H, V], log-sum-exp [B, Q, H])."""
  x = _blocks(q_BQHD, k_BSKD, v_BSKV, mask)
  wide = jnp.promote_types(q_BQHD.dtype, jnp.float32)

  def query_block(_, i):
    q_NRD = x.q[i]

    def key_block(n, carry):
      top, total, out = carry
      j = x.key_order[i, n]
      s = _scores(x, q_NRD, i, j, scale)
      new_top = jnp.maximum(top, s.max(-1))
      p = jnp.exp(s - new_top[..., None])
      shrink = jnp.exp(top - new_top)
      pv = jnp.einsum("nrs,nsv->nrv", p.astype(x.v.dtype), x.v[j], preferred_element_type=wide)
      return new_top, total * shrink + p.sum(-1), out * shrink[..., None] + pv

    shape = q_NRD.shape[:-1]
    carry = (jnp.full(shape, _FAR, wide), jnp.zeros(shape, wide), jnp.zeros((*shape, x.v.shape[-1]), wide))
    top, total, out = x.each_key_block(i, key_block, carry)
    seen = top > _FAR
    safe = jnp.where(seen, total, 1.0)
    lse = jnp.where(seen, top + jnp.log(safe), -jnp.inf)
    return None, (jnp.where(seen[..., None], out / safe[..., None], 0.0).astype(x.v.dtype), lse)

  _, (out, lse) = x.each_query_block(query_block, None)
  Q = q_BQHD.shape[1]
  return x.join_queries(out, Q), x.join_queries(lse[..., None], Q)[..., 0]


def backward(q_BQHD, k_BSKD, v_BSKV, mask, scale, lse_BQH, delta_BQH, d_out_BQHV):
  """Returns (dq, dk, dv) in the dtypes of q, k and v; `lse` is finite, `delta` as api.delta gives it."""
  x = _blocks(q_BQHD, k_BSKD, v_BSKV, mask)
  wide = jnp.promote_types(q_BQHD.dtype, jnp.float32)
  product = functools.partial(jnp.einsum, preferred_element_type=wide)
  K = k_BSKD.shape[2]
  lse, delta = (_split(y[..., None], K, x.q_block)[..., 0] for y in (lse_BQH, delta_BQH))
  d_out = _split(d_out_BQHV, K, x.q_block)

  def query_block(dkv, i):
    q_NRD = x.q[i]

    def key_block(n, carry):
      dq, dk, dv = carry
      j = x.key_order[i, n]
      p = jnp.exp(_scores(x, q_NRD, i, j, scale) - lse[i][..., None])
      dp = product("nrv,nsv->nrs", d_out[i], x.v[j])
      ds = (p * (dp - delta[i][..., None]) * scale).astype(q_NRD.dtype)
      dq += product("nrs,nsd->nrd", ds, x.k[j])
      dk = dk.at[j].add(product("nrd,nrs->nds", q_NRD, ds))  # so that the smaller side is turned, not the scores
      dv = dv.at[j].add(product("nrv,nrs->nvs", d_out[i], p.astype(d_out.dtype)))
      return dq, dk, dv

    dq, *dkv = x.each_key_block(i, key_block, (jnp.zeros(q_NRD.shape, wide), *dkv))
    return tuple(dkv), dq.astype(q_NRD.dtype)

  zeros = tuple(jnp.zeros(jnp.swapaxes(y, -1, -2).shape, wide) for y in (x.k, x.v))
  (dk, dv), dq = x.each_query_block(query_block, zeros)
  S = k_BSKD.shape[1]
  return x.join_queries(dq, q_BQHD.shape[1]), x.join_keys(dk, S).astype(k_BSKD.dtype), x.join_keys(dv, S).astype(v_BSKV.dtype)


class _Blocks:
  """The inputs in blocks, block first: q [I, N, R, D], k [J, N, s, D], v [J, N, s, V]."""

  def __init__(self, q, k, v, mask, q_block, k_block, batch):
    self.q, self.k, self.v, self.mask, self.q_block, self.k_block, self.batch = q, k, v, mask, q_block, k_block, batch
    I, J = q.shape[0], k.shape[0]
    if mask.trivial or self.single:
      self.key_count, self.key_order = jnp.full((I,), J), jnp.broadcast_to(jnp.arange(J), (I, J))
      return
    seen_IJ = jnp.any(masks.block_classes(mask, q_block, k_block) != masks.NONE, axis=0)
    self.key_count = jnp.sum(seen_IJ, axis=1)
    self.key_order = jnp.argsort(~seen_IJ, axis=1, stable=True)  # the seen ones first

  @property
  def single(self) -> bool:
    return self.q.shape[0] == self.k.shape[0] == 1

  def each_query_block(self, body, carry):
    """`lax.scan` of body(carry, i) over the query blocks."""
    if not self.single:
      return jax.lax.scan(body, carry, jnp.arange(self.q.shape[0]))
    carry, out = body(carry, 0)
    return carry, jax.tree.map(lambda y: y[None], out)

  def each_key_block(self, i, body, carry):
    """body(n, carry) for each key block that query block i sees."""
    return body(0, carry) if self.single else jax.lax.fori_loop(0, self.key_count[i], body, carry)

  def visible(self, i, j):
    """[B, 1, 1, q, s] of a pair of blocks, or None."""
    m = self.mask
    q = lambda x: None if x is None else jax.lax.dynamic_slice_in_dim(x, i * self.q_block, self.q_block, 1)[:, None, None, :, None]
    k = lambda x: None if x is None else jax.lax.dynamic_slice_in_dim(x, j * self.k_block, self.k_block, 1)[:, None, None, None, :]
    return masks.pairs(q(m.q_positions), q(m.q_segment_ids), k(m.k_positions), k(m.k_segment_ids), m.causal, m.window)

  def join_queries(self, x_INRD, length):
    """[I, N, R, D] -> [B, Q, H, D]."""
    I, N, R, D = x_INRD.shape
    B, G = self.batch, R // self.q_block
    x = x_INRD.reshape(I, B, N // B, G, self.q_block, D).transpose(1, 0, 4, 2, 3, 5)
    return x.reshape(B, I * self.q_block, N // B * G, D)[:, :length]

  def join_keys(self, x_JNDs, length):
    """[J, N, D, s] -> [B, S, K, D]."""
    J, N, D, s = x_JNDs.shape
    return x_JNDs.reshape(J, self.batch, -1, D, s).transpose(1, 0, 4, 2, 3).reshape(self.batch, J * s, -1, D)[:, :length]


def _blocks(q_BQHD, k_BSKD, v_BSKV, mask) -> _Blocks:
  (B, Q, _, _), (_, S, K, _) = q_BQHD.shape, k_BSKD.shape
  q_block, k_block = (Q, S) if Q * S <= _WHOLE else (min(_BLOCK, Q), min(_BLOCK, S))
  if mask.trivial and (Q % q_block or S % k_block):
    mask = masks.with_segments(mask, B, Q, S)
  mask = masks.fill(mask, -Q % q_block, -S % k_block)
  q = _split(q_BQHD, K, q_block)
  k, v = (_split(x, K, k_block) for x in (k_BSKD, v_BSKV))
  return _Blocks(q, k, v, mask, q_block, k_block, B)


def _split(x_BQHD, kv_heads, block):
  """[B, Q, H, D] -> [I, N, R, D], filled up with zeros; keys have one head a group."""
  B, Q, H, D = x_BQHD.shape
  x = jnp.pad(x_BQHD, ((0, 0), (0, -Q % block), (0, 0), (0, 0)))
  x = x.reshape(B, -1, block, kv_heads, H // kv_heads, D).transpose(1, 0, 3, 4, 2, 5)
  return x.reshape(x.shape[0], B * kv_heads, -1, D)


def _scores(x: _Blocks, q_NRD, i, j, scale):
  s = jnp.einsum("nrd,nsd->nrs", q_NRD, x.k[j], preferred_element_type=jnp.promote_types(q_NRD.dtype, jnp.float32)) * scale
  seen = x.visible(i, j)
  if seen is None:
    return s
  apart = s.reshape(x.batch, -1, s.shape[1] // x.q_block, x.q_block, s.shape[2])  # [B, K, G, q, s]
  return jnp.where(seen, apart, _FAR).reshape(s.shape)
