"""Rows dealt to ranks: every row once, slots kept, loads alike."""

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from bluelm_jax.data import balance


def ranks(loads, order, groups):
  return loads[order].reshape(groups, -1, 3).sum(1)


@hypothesis.settings(max_examples=100, deadline=None)
@hypothesis.given(st.integers(1, 6), st.integers(1, 5), st.integers(0, 2**31))
def test_every_row_once_and_no_rank_over_its_slots(groups, rows_each, seed):
  rng = np.random.default_rng(seed)
  loads = rng.integers(0, 9, (groups * rows_each, 3)).astype(float)
  slots = int(ranks(loads, np.arange(len(loads)), groups)[:, 2].max())  # the order as it comes keeps to them, just
  order = balance.assign(loads, groups, slots)
  assert sorted(order) == list(range(len(loads)))
  assert ranks(loads, order, groups)[:, 2].max() <= slots


def test_loads_become_even():
  """Lengths squared of a few long documents, all in the first rows, and tiles that fall from row to row."""
  rng = np.random.default_rng(0)
  loads = np.stack([rng.integers(4000, 4096, 64), np.sort(rng.lognormal(13, 0.7, 64))[::-1], np.linspace(20, 0, 64).round()], 1).astype(float)
  before, slots = ranks(loads, np.arange(64), 8), 160
  after = ranks(loads, balance.assign(loads, 8, slots), 8)
  assert (before.max(0) / before.mean(0))[1:].min() > 1.5
  assert (after.max(0) / after.mean(0) <= [1.02, 1.10, 1.02]).all()


def test_tiles_do_not_hold_long_rows_together():
  """No one swap parts the two long rows without unbalancing tiles; two do."""
  loads = np.array([[1, 9, 0], [1, 9, 0], [1, 1, 6], [1, 1, 6], [1, 1, 3], [1, 1, 3], [1, 1, 3], [1, 1, 3]], float)
  after = ranks(loads, balance.assign(loads, 2, 13), 2)
  assert after[:, 1].tolist() == [12, 12] and after[:, 2].max() <= 13


@pytest.mark.parametrize("groups", [1, 4])
def test_nothing_to_choose(groups):
  assert balance.assign(np.ones((4, 3)), groups, 5).tolist() == [0, 1, 2, 3]
