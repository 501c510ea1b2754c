"""Intervals and tests against known values and simulation."""

import numpy as np
import pytest
import scipy.stats

from bluelm_jax.evaluation import statistics


@pytest.mark.parametrize("k,n", [(0, 10), (3, 10), (50, 400), (399, 400)])
def test_wilson_equals_scipy(k, n):
  expected = scipy.stats.binomtest(k, n).proportion_ci(0.95, method="wilson")
  np.testing.assert_allclose(statistics.wilson(k, n), (expected.low, expected.high), atol=1e-4)


def test_paired_test_is_mcnemar_for_single_items():
  ours, control = np.array([1.0] * 15 + [0.0] * 5 + [1.0] * 30), np.array([0.0] * 15 + [1.0] * 5 + [1.0] * 30)
  expected = scipy.stats.binomtest(15, 20, alternative="greater").pvalue
  assert statistics.paired_test(ours, control, np.arange(50)) == pytest.approx(expected)


def test_paired_test_is_one_sided_and_blind_without_difference():
  rng = np.random.default_rng(0)
  better, worse = (rng.random(400) < 0.5).astype(float), (rng.random(400) < 0.3).astype(float)
  assert statistics.paired_test(better, worse, np.arange(400)) < 1e-4
  assert statistics.paired_test(worse, better, np.arange(400)) > 0.99
  assert statistics.paired_test(better, better, np.arange(400)) == 1.0


def test_paired_test_counts_screens_not_items():
  """Ten copies of the same evidence are no more evidence than one."""
  rng = np.random.default_rng(1)
  ours, control = (rng.random(30) < 0.6).astype(float), (rng.random(30) < 0.4).astype(float)
  single = statistics.paired_test(ours, control + 1e-12, np.arange(30))
  copied = statistics.paired_test(np.repeat(ours, 10), np.repeat(control, 10), np.repeat(np.arange(30), 10))
  assert copied == pytest.approx(single, abs=0.02)


def test_false_alarms_keep_to_their_rate():
  rng = np.random.default_rng(2)
  clusters = np.repeat(np.arange(60), 2)
  p = [statistics.paired_test(rng.random(120) < 0.3, np.full(120, 0.3), clusters, draws=1000, seed=i) for i in range(200)]
  assert 0.01 < np.mean(np.array(p) < 0.05) < 0.11


def test_bootstrap_covers_the_mean():
  rng, clusters, inside = np.random.default_rng(3), np.repeat(np.arange(50), 3), 0
  for i in range(100):
    screen = rng.normal(size=50)
    low, high = statistics.bootstrap(np.repeat(screen, 3) + 0.1 * rng.normal(size=150), clusters, 500, i)
    inside += low <= 0 <= high
  assert inside >= 86  # 95 of 100 expected; 86 or fewer has p < 0.001
