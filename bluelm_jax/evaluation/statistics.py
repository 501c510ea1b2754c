"""Intervals and tests for held-out figures."""

import math

import numpy as np
import scipy.stats


def wilson(successes: float, n: int, z: float = 1.96) -> tuple[float, float]:
  """The 95 % Wilson score interval of a proportion."""
  if n == 0:
    return 0.0, 1.0
  p = successes / n
  centre = (p + z * z / (2 * n)) / (1 + z * z / n)
  half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
  return max(centre - half, 0.0), min(centre + half, 1.0)


def bootstrap(values: np.ndarray, clusters: np.ndarray, draws: int = 2000, seed: int = 0) -> tuple[float, float]:
  """The 95 % interval of a mean when items of one cluster (e.g. one screen) go together."""
  sums, counts = _by_cluster(values, clusters)
  picks = np.random.default_rng(seed).integers(len(sums), size=(draws, len(sums)))
  means = sums[picks].sum(1) / counts[picks].sum(1)
  return float(np.quantile(means, 0.025)), float(np.quantile(means, 0.975))


def rate(sums_N2: np.ndarray) -> np.ndarray:
  """The sum of the first column over that of the second."""
  return sums_N2[..., 0].sum(-1) / sums_N2[..., 1].sum(-1)


def rate_interval(sums_N2: np.ndarray, control_N2: np.ndarray | None = None, draws: int = 2000, seed: int = 0) -> tuple[float, float]:
  """The 95 % interval of a rate, or of its difference from that of a control on the same items."""
  picks = np.random.default_rng(seed).integers(len(sums_N2), size=(draws, len(sums_N2)))
  found = rate(sums_N2[picks]) - (0.0 if control_N2 is None else rate(control_N2[picks]))
  return float(np.quantile(found, 0.025)), float(np.quantile(found, 0.975))


def paired_test(ours: np.ndarray, control: np.ndarray, clusters: np.ndarray, draws: int = 50_000, seed: int = 0) -> float:
  """One-sided p that `ours` is no better than `control`: a sign-flip test on cluster sums.

  Exact McNemar where every item is its own cluster.
  """
  difference = np.asarray(ours, float) - np.asarray(control, float)
  if len(np.unique(clusters)) == len(clusters) and set(np.unique(difference)) <= {-1.0, 0.0, 1.0}:
    wins, losses = int((difference > 0).sum()), int((difference < 0).sum())
    return 1.0 if wins + losses == 0 else float(scipy.stats.binomtest(wins, wins + losses, 0.5, alternative="greater").pvalue)
  sums, _ = _by_cluster(difference, clusters)
  rng, at_least = np.random.default_rng(seed), 0
  for _ in range(draws // 1000):
    signs = rng.choice((-1.0, 1.0), size=(1000, len(sums)))
    at_least += int((signs @ sums >= sums.sum() - 1e-9).sum())
  return (at_least + 1) / (draws // 1000 * 1000 + 1)


def _by_cluster(values, clusters):
  names, index = np.unique(clusters, return_inverse=True)
  return np.bincount(index, values, len(names)), np.bincount(index, minlength=len(names))
