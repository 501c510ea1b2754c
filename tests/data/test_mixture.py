"""Which example comes when: shares, their change, epochs and caps, all by index."""

import itertools
import sys

import grain
import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from bluelm_jax.data import mixture
from bluelm_jax.data.mixture import Part
from bluelm_jax.data.mixture import Plan


def drawn(plan, n):
  return [plan[i] for i in range(n)]


def shares(plan, first, last):
  """Shares of the tokens among examples first..last."""
  counts = np.subtract(plan.counts(last), plan.counts(first)) * [p.mean for p in plan.parts]
  return counts / counts.sum()


KNOTS = st.lists(st.tuples(st.integers(0, 60), st.floats(0, 3)), min_size=1, max_size=4, unique_by=lambda k: k[0]).map(lambda k: tuple(sorted(k)))
PARTS = st.lists(
    st.builds(Part, st.floats(0.01, 3) | KNOTS.filter(lambda k: any(s > 0.01 for _, s in k)), st.floats(1, 90), st.none() | st.integers(1, 400)), min_size=1, max_size=4)


@hypothesis.settings(max_examples=150, deadline=None)
@hypothesis.given(PARTS, st.integers(20, 300))
def test_every_element_once_in_its_order(parts, step_tokens):
  """Whatever the schedule: each source's elements 0, 1, ... come once, no more than it has, and counts say how many came."""
  try:
    plan = Plan(parts, step_tokens)
  except ValueError:
    assert all(isinstance(p.share, tuple) for p in parts)
    return
  n = min(len(plan), 1500)
  came = [0] * len(parts)
  for i, (source, element) in enumerate(drawn(plan, n)):
    assert plan.counts(i) == tuple(came) and element == came[source]
    came[source] += 1
    assert parts[source].examples is None or came[source] <= parts[source].examples
  if n == len(plan):  # all ended, those whose share is 0 for good aside
    assert all(c == p.examples or not isinstance(p.share, float) for c, p in zip(came, parts))


def test_constant_shares_are_of_tokens():
  plan = Plan([Part(0.6, 300.0), Part(0.3, 20.0), Part(0.1, 50.0)], 1000)
  assert len(plan) == sys.maxsize
  for first in (0, 12_345, 10**12):
    assert shares(plan, first, first + 20_000) == pytest.approx([0.6, 0.3, 0.1], rel=0.01)
  first = [plan[i][0] for i in range(400)]
  assert 40 <= first.count(0) <= 45 and max(len(list(g)) for s, g in itertools.groupby(first) if s == 0) == 1  # spread, not in runs


def test_the_order_is_that_of_grain():
  """For constant shares; so runs of earlier versions repeat."""
  weights = np.array([0.31, 0.52, 0.17])
  plan = Plan([Part(w, 1.0) for w in weights], 10)
  theirs = grain.MapDataset.mix([grain.MapDataset.range(1000).map(lambda x, i=i: (i, x)) for i in range(3)], weights)
  assert drawn(plan, 900) == [theirs[i] for i in range(900)]


def test_shares_change_with_the_step():
  """From 0.4 to 0.1 over 1000 steps, then as it was; steps are counted in tokens of full batches."""
  step_tokens, ramp = 5000, ((0, 0.4), (1000, 0.1))
  plan = Plan([Part(ramp, 40.0), Part(((0, 0.6), (1000, 0.9)), 100.0)], step_tokens)

  def index(step):  # the first example of a step: where as many tokens have come
    low, high = 0, 10**7
    while low < high:
      mid = (low + high) // 2
      low, high = (mid + 1, high) if np.dot(plan.counts(mid), (40.0, 100.0)) < step * step_tokens else (low, mid)
    return low

  for step, want in ((0, 0.4), (100, 0.37), (500, 0.25), (980, 0.106), (2000, 0.1), (50_000, 0.1)):
    assert shares(plan, index(step), index(step + 12))[0] == pytest.approx(want, abs=0.012), step
  assert shares(plan, 0, index(1000))[0] == pytest.approx(0.25, abs=5e-4) and len(plan._stretches) < 200


def test_a_step_in_the_shares_is_no_ramp():
  plan = Plan([Part(((0, 1), (10, 1), (10.01, 0), (20, 0), (20.01, 1)), 1.0), Part(1.0, 1.0)], 100)
  assert set(s for s, _ in drawn(plan, 990)) == {0, 1} and plan.counts(1980)[0] - plan.counts(1010)[0] == 0 and plan.counts(4000)[0] - plan.counts(2010)[0] > 900


def test_epochs_end_and_others_take_the_share():
  """A source of 100 records for 3 epochs; when it ends the two others keep their own ratio."""
  plan = Plan([Part(0.5, 10.0, 300, 100), Part(0.3, 10.0), Part(0.2, 10.0)], 1000)
  end = next(i for i in range(10_000) if plan.counts(i)[0] == 300)
  assert 590 < end < 610 and all(s for s, _ in drawn(plan, 2000)[end:])
  assert shares(plan, end, end + 10_000) == pytest.approx([0, 0.6, 0.4], abs=0.01)
  assert plan.counts(10**9)[0] == 300


def test_the_mixture_ends_with_its_last_source():
  plan = Plan([Part(0.9, 10.0, 30), Part(0.1, 10.0, 50)], 1000)
  assert len(plan) == 80 and sorted(drawn(plan, 80)) == [(0, i) for i in range(30)] + [(1, i) for i in range(50)]
  assert drawn(plan, 80)[-40:] == [(1, i) for i in range(10, 50)]


def test_a_source_that_waits_for_its_share():
  """Alone with a share that begins later, a source is not kept waiting; ended by a share of 0, it has no more."""
  assert len(Plan([Part(((5, 0), (6, 1)), 10.0, 7)], 100)) == 7
  ends = Plan([Part(((0, 1), (5, 1), (5.001, 0)), 10.0, 10_000)], 100)
  assert 45 <= len(ends) <= 55
  with pytest.raises(ValueError, match="no source has a share"):
    Plan([Part(((0, 0.0),), 1.0)], 10)


def test_far_examples_cost_no_more():
  plan = Plan([Part(((0, 0.4), (1000, 0.1)), 40.0), Part(0.6, 100.0), Part(0.3, 20.0, 10**9)], 10**6)
  assert plan[10**15][0] in (0, 1) and len(plan._stretches) < 200
