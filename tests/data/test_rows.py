"""What fills a row, against every subset there is."""

import itertools

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from bluelm_jax.data import rows


def cost(n, t, length, aim):
  return (length - n) / length + 0.05 * abs(t - aim) / max(aim, 1.0)


@hypothesis.settings(max_examples=300, deadline=None)
@hypothesis.given(
    st.lists(st.tuples(st.integers(1, 60), st.sampled_from([0, 0, 1, 2, 3])), min_size=1, max_size=9), st.integers(20, 90), st.integers(0, 8), st.floats(0, 1),
    st.integers(1, 3))
def test_no_subset_fills_better(sizes, length, slots, share, every):
  n, t = zip(*sizes)
  t, slots = [x * every for x in t], slots * every
  aim = slots * share
  chosen = rows.fill_row(n, t, length, slots, aim)
  fit = [i for i in range(len(n)) if n[i] <= length and t[i] <= slots]
  if not fit:
    assert chosen == []
    return
  assert chosen == sorted(set(chosen)) and chosen[0] == fit[0]  # the first that fits comes first
  sums = lambda picked: (sum(n[i] for i in picked), sum(t[i] for i in picked))
  have = sums(chosen)
  assert have[0] <= length and have[1] <= slots
  most = min(slots, max(np.ceil(2 * aim), t[fit[0]]))
  possible = [
      s for k in range(len(fit)) for more in itertools.combinations(fit[1:], k) if (s := sums((fit[0], *more)))[0] <= length and s[1] <= most]
  best = min(cost(*s, length, aim) for s in possible)
  full = have[0] == length and abs(have[1] - aim) <= 2 * every  # taken at once
  assert full or cost(*have, length, aim) <= best + 1e-9


def test_long_rows_are_filled_to_a_few_tokens_and_never_beyond():
  rng = np.random.default_rng(0)
  for _ in range(50):
    n = np.clip(rng.lognormal(np.log(1500), 1.2, 40).astype(int), 8, 32768).tolist()
    total = sum(n[i] for i in rows.fill_row(n, [0] * 40, 32768, 0, 0))
    assert 0.985 * 32768 < total <= 32768


@pytest.mark.parametrize("length", [4095, 4097, 5000, 6145])
def test_lengths_that_are_no_whole_units(length):
  assert rows.fill_row([length, 1], [0, 0], length, 0, 0) == [0]
  assert rows.fill_row([length + 1, length - 1, 2, 1], [0] * 4, length, 0, 0) == [1, 3]


def test_what_units_leave_empty_is_filled():
  """819 examples of 3 to 7 tokens, which rounding up to units of 2 would make 12 % longer."""
  n = [3 + i % 5 for i in range(1000)]
  assert sum(n[i] for i in rows.fill_row(n, [0] * 1000, 4096, 0, 0)) == 4096


def test_rows_of_very_many_images():
  n, t = [70 + i % 7 for i in range(600)], [1 - i % 2 for i in range(600)]
  chosen = rows.fill_row(n, t, 32768, 250, 200.0)
  assert sum(n[i] for i in chosen) > 0.999 * 32768 and abs(sum(t[i] for i in chosen) - 200) < 10


def test_tiles_come_as_they_are_aimed_at():
  n, t = [230] * 10 + [37] * 40, [1] * 10 + [0] * 40
  for aim in range(1, 5):
    chosen = rows.fill_row(n, t, 1000, 10, aim)
    assert sum(t[i] for i in chosen) == aim


def test_older_examples_come_first():
  assert rows.fill_row([50] * 6, [0] * 6, 100, 0, 0) == [0, 1]
  assert rows.fill_row([200, 40, 60, 60, 60], [0] * 5, 100, 0, 0) == [1, 2]


def test_sums_beyond_the_row_are_not_taken_for_tiles():
  """1 + 9 + 9 + 6 + 6 tokens would be the bit of 10 tokens and a tile."""
  assert rows.fill_row([1, 9, 9, 6, 6], [0] * 5, 10, 1, 1) == [0, 1]
