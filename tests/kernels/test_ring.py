"""A sequence split over ranks attends as the whole one does: every strategy, layout and mask, on eight virtual devices."""

import functools
import itertools

import jax
from jax.sharding import Mesh, PartitionSpec as P
import jax.numpy as jnp
import numpy as np
import pytest

from bluelm_jax.kernels.attention import api
from bluelm_jax.kernels.attention import layouts
from bluelm_jax.kernels.attention import masks
from bluelm_jax.kernels.attention import pallas_tpu
from bluelm_jax.kernels.attention import ring

RANKS = 8


def packed_rows(rng, rows, length, mean):
  """Segment ids and positions of rows packed with documents of lognormal lengths, padded at the end."""
  segment_ids, positions = np.zeros((2, rows, length), np.int32)
  for b in range(rows):
    at, number = 0, 1
    while at < 0.95 * length:
      n = min(max(2, int(rng.lognormal(np.log(mean), 1.0))), length - at)
      segment_ids[b, at : at + n], positions[b, at : at + n] = number, np.arange(n)
      at, number = at + n, number + 1
  return jnp.array(segment_ids), jnp.array(positions)


def error(found, expected):
  return np.linalg.norm(found - expected) / np.linalg.norm(expected)


class Case:
  """What is drawn for a number of key-value heads, and the whole sequence's outputs and gradients."""

  def __init__(self, kv_heads):
    rng = np.random.default_rng(0)
    B, S, H, D = 2, 256, 8, 16
    self.segment_ids, self.positions = packed_rows(rng, B, S, 40)
    *self.qkv, self.d_out, self.d_lse = (
        jnp.array(rng.standard_normal(s), jnp.float32) for s in ((B, S, H, D), (B, S, kv_heads, D), (B, S, kv_heads, D), (B, S, H, D), (B, S, H)))
    numbers = dict(q_positions=self.positions, k_positions=self.positions, q_segment_ids=self.segment_ids, k_segment_ids=self.segment_ids)
    self.expected = self.results(lambda *qkv: api.attention(*qkv, **numbers, implementation="reference"))()

  def results(self, function):
    """A compiled function of what `function` takes beside q, k and v: (out, lse, dq, dk, dv)."""
    def loss(qkv, *rest):
      out, lse = function(*qkv, *rest)
      return jnp.sum(out * self.d_out) + jnp.sum(lse * self.d_lse), (out, lse)

    @jax.jit
    def run(qkv, *rest):
      (_, outs), grads = jax.value_and_grad(loss, has_aux=True)(qkv, *rest)
      return *outs, *grads

    return functools.partial(run, self.qkv)


case = functools.cache(Case)


@functools.cache
def split(strategy, kv_heads, implementation):
  """Results for an order of the sequence: compiled once for all layouts."""
  found, mesh = case(kv_heads), Mesh(np.array(jax.devices()[:RANKS]), ("context",))

  def run(q, k, v, order):
    mask = masks.make(*[layouts.permute(x, order) for x in (found.positions, found.positions, found.segment_ids, found.segment_ids)], causal=True)
    local = functools.partial(ring.attention, axis="context", strategy=strategy, scale=q.shape[-1] ** -0.5, implementation=implementation)
    out = jax.shard_map(local, mesh=mesh, in_specs=P(None, "context"), out_specs=P(None, "context"), check_vma=False)(
        *[layouts.permute(x, order) for x in (q, k, v)], mask)
    return [layouts.undo(x, order) for x in out]

  return found.results(run)


@pytest.mark.parametrize("strategy,kv_heads,implementation", [
    ("ring", 2, "xla"), ("ring", 1, "pallas_tpu"), ("all_gather", 2, "auto"), ("ulysses", 8, "xla")])
@pytest.mark.parametrize("layout", ["none", "zigzag", "striped"])
def test_split_equals_whole(strategy, kv_heads, implementation, layout):
  whole = case(kv_heads)
  order = layouts.order(layout, whole.positions, whole.segment_ids, RANKS)
  for found, expected in zip(split(strategy, kv_heads, implementation)(order), whole.expected):
    assert error(found, expected) < 1e-5


def test_hops_with_nothing_to_see_compute_nothing():
  """Eight documents on eight ranks: every hop but the first lists no pair of blocks for the TPU kernels."""
  segment_ids = jnp.repeat(jnp.arange(1, 9), 256)[None]
  positions = jnp.tile(jnp.arange(256), 8)[None]
  parts = [slice(256 * r, 256 * r + 256) for r in range(RANKS)]
  listed = jax.jit(functools.partial(pallas_tpu._pairs, bq=128, bk=128, by_query=True))
  for (i, q), (j, k) in itertools.product(enumerate(parts), repeat=2):
    mask = masks.make(positions[:, q], positions[:, k], segment_ids[:, q], segment_ids[:, k], causal=True)
    pairs, steps = listed(mask)
    computed = int(jnp.sum((pairs & pallas_tpu._CLASS) != 0))
    assert (computed, int(steps)) == ((3, 3) if i == j else (0, 2))


@pytest.mark.parametrize("mean,sigma", [(1500, 1.0), (4000, 1.2), (12000, 1.0)])
def test_striped_rows_are_balanced(mean, sigma):
  """Packed 32K rows over 8 ranks: the busiest has at most 1.05 of the mean's visible blocks (`pytest -rP` shows the worst)."""
  rng, worst = np.random.default_rng(int(mean)), 0.0
  for _ in range(20):
    lengths = []
    while sum(lengths) < 32768:
      lengths.append(max(16, int(rng.lognormal(np.log(mean) - sigma**2 / 2, sigma))))
    segment_ids = jnp.array(np.repeat(np.arange(1, len(lengths) + 1), lengths)[None, :32768])
    positions = jnp.array(np.concatenate([np.arange(n) for n in lengths])[None, :32768])
    order = layouts.order("striped", positions, segment_ids, RANKS)
    segment_ids, positions = layouts.permute(segment_ids, order), layouts.permute(positions, order)
    work = np.asarray(layouts.block_work(positions, segment_ids, layouts.STRIPE))[0].reshape(RANKS, -1).sum(1)
    worst = max(worst, work.max() / work.mean())
  print(f"lognormal documents of {mean} tokens on average, sigma {sigma}: worst of 20 rows {worst:.4f}")
  assert worst <= 1.05


def test_zigzag_balances_one_document():
  positions, segment_ids = jnp.arange(4096)[None], jnp.ones((1, 4096), jnp.int32)
  order = layouts.order("zigzag", positions, segment_ids, RANKS)
  work = layouts.block_work(layouts.permute(positions, order), segment_ids, 128).reshape(RANKS, -1).sum(1)
  assert work.min() == work.max()


@pytest.mark.parametrize("layout", layouts.LAYOUTS)
def test_orders_are_permutations_that_can_be_undone(layout):
  segment_ids, positions = packed_rows(np.random.default_rng(1), 3, 768, 60)
  order = layouts.order(layout, positions, segment_ids, 8)
  np.testing.assert_array_equal(np.sort(order, axis=1), np.tile(np.arange(768), (3, 1)))
  np.testing.assert_array_equal(layouts.undo(layouts.permute(positions, order), order), positions)


def test_what_cannot_be_split_is_refused():
  with pytest.raises(ValueError, match="layout 'spiral' is unknown"):
    layouts.order("spiral", jnp.zeros((1, 64)), jnp.zeros((1, 64)), 8)
  with pytest.raises(ValueError, match="do not divide into 16 parts"):
    layouts.order("zigzag", jnp.zeros((1, 72)), jnp.zeros((1, 72)), 8)
  x = jnp.zeros((1, 8, 2, 4))
  mask = masks.make(None, None, causal=False)
  mesh = Mesh(np.array(jax.devices()[:4]), ("context",))
  for strategy, words in (("ulysses", "use ring or all_gather"), ("tree", "context_parallel 'tree' is unknown")):
    local = functools.partial(ring.attention, mask=mask, axis="context", strategy=strategy, scale=1.0)
    with pytest.raises(ValueError, match=words):
      jax.eval_shape(jax.shard_map(local, mesh=mesh, in_specs=P(None, "context"), out_specs=P(None, "context"), check_vma=False), x, x, x)
