"""Who sees whom: against the definition, one pair at a time."""

import hypothesis
import hypothesis.strategies as st
import jax.numpy as jnp
import numpy as np
import pytest

from bluelm_jax.kernels.attention import masks
from bluelm_jax.kernels.attention.api import attention


@st.composite
def layouts(draw):
  """Segments and positions of a row, in any order, with padding."""
  lengths = draw(st.lists(st.integers(1, 5), min_size=1, max_size=4))
  segment_ids = np.concatenate([np.full(n, i + 1) for i, n in enumerate(lengths)] + [np.zeros(draw(st.integers(0, 3)), int)])
  positions = np.concatenate([np.arange(n) for n in lengths] + [np.zeros(len(segment_ids) - sum(lengths), int)])
  order = draw(st.permutations(range(len(segment_ids))))
  return segment_ids[list(order)], positions[list(order)]


@hypothesis.settings(max_examples=150, deadline=None)
@hypothesis.given(layouts(), st.booleans(), st.sampled_from([None, 1, 2, 4]))
def test_the_definition(layout, causal, window):
  segment_ids, positions = layout
  hypothesis.assume(causal or window is None)
  found = masks.visible(masks.make(jnp.array(positions)[None], jnp.array(positions)[None], jnp.array(segment_ids)[None], jnp.array(segment_ids)[None], causal=causal, window=window))
  for q in range(len(segment_ids)):
    for k in range(len(segment_ids)):
      expected = segment_ids[q] == segment_ids[k]
      if causal:
        expected = expected and positions[k] <= positions[q] and (window is None or positions[q] - positions[k] < window)
      assert bool(found[0, q, k]) == bool(expected)


@hypothesis.settings(max_examples=30, deadline=None)
@hypothesis.given(layouts(), st.integers(0, 99))
def test_attention_follows_any_order_of_its_keys(layout, seed):
  """Rows may be permuted (as in context parallelism): each query's output is the same."""
  segment_ids, positions = layout
  rng, n = np.random.default_rng(seed), len(segment_ids)
  q, k, v = (rng.standard_normal((1, n, h, 4)).astype(np.float32) for h in (4, 2, 2))
  run = lambda order: np.asarray(attention(
      jnp.array(q[:, order]), jnp.array(k[:, order]), jnp.array(v[:, order]), q_positions=jnp.array(positions[order])[None],
      k_positions=jnp.array(positions[order])[None], q_segment_ids=jnp.array(segment_ids[order])[None], k_segment_ids=jnp.array(segment_ids[order])[None], causal=True, implementation="reference")[0])
  order = rng.permutation(n)
  np.testing.assert_allclose(run(np.arange(n))[:, order], run(order), atol=1e-5)


@hypothesis.settings(max_examples=60, deadline=None)
@hypothesis.given(layouts(), st.booleans(), st.sampled_from([None, 1, 3]), st.integers(1, 4), st.integers(1, 4))
def test_blocks_promise_no_more_than_their_pairs(layout, causal, window, q_block, k_block):
  """NONE and FULL are exact where they are said, also in rows filled up to whole blocks."""
  hypothesis.assume(causal or window is None)
  n = 23  # the longest layout, for all: few shapes, each of which is compiled
  segment_ids, positions = (jnp.array(np.pad(x, (0, n - len(x))))[None] for x in layout)
  mask = masks.fill(masks.make(positions, positions, segment_ids, segment_ids, causal=causal, window=window), -n % q_block, -n % k_block)
  seen = np.asarray(masks.visible(mask)[0])
  assert not seen[n:].any() and not seen[:, n:].any()
  classes = np.asarray(masks.block_classes(mask, q_block, k_block)[0])
  for (i, j), found in np.ndenumerate(classes):
    block = seen[i * q_block : (i + 1) * q_block, j * k_block : (j + 1) * k_block]
    assert found != masks.NONE or not block.any()
    assert found != masks.FULL or block.all()


def test_sorted_rows_skip_all_that_can_be_skipped():
  """Packed rows in order: a block is computed only if a pair in it is visible."""
  segment_ids = jnp.array([1] * 6 + [2] * 5 + [3] * 9 + [0] * 4)[None]
  positions = jnp.concatenate([jnp.arange(n) for n in (6, 5, 9)] + [jnp.zeros(4, jnp.int32)])[None]
  mask = masks.make(positions, positions, segment_ids, segment_ids, causal=True)
  some = np.asarray(masks.visible(mask)[0]).reshape(6, 4, 6, 4).any((1, 3))
  np.testing.assert_array_equal(np.asarray(masks.block_classes(mask, 4, 4)[0]) != masks.NONE, some)


def test_nothing_masked_is_none():
  assert masks.visible(masks.make(None, None, causal=False)) is None


def test_half_given_arguments_are_refused():
  p = jnp.zeros((1, 2), jnp.int32)
  with pytest.raises(ValueError, match="segment ids"):
    masks.make(p, p, p, None, causal=True)
  with pytest.raises(ValueError, match="window"):
    masks.make(p, p, causal=False, window=2)


def test_a_query_that_sees_nothing_gets_zeros():
  x = jnp.ones((1, 2, 1, 4))
  p = jnp.zeros((1, 2), jnp.int32)
  out, lse = attention(x, x, x, q_positions=p, k_positions=p, q_segment_ids=p + 1, k_segment_ids=p + 2, causal=True)
  assert not out.any() and jnp.isneginf(lse).all()
