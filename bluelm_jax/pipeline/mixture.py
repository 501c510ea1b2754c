"""How much of each group of data a run should see: shares of the tokens, from the groups' sizes or from small proxy runs."""

from typing import Mapping, Sequence

import numpy as np

from bluelm_jax.pipeline import files

_CANDIDATES = 20_000  # mixtures among which the fitted rule takes the best
_AVERAGED = 100  # and averages the best, as RegMix does: one best is noise's favourite


def natural(tokens: Mapping[str, float]) -> dict[str, float]:
  """Shares by size."""
  return temperature(tokens, 1.0)


def temperature(tokens: Mapping[str, float], temperature: float) -> dict[str, float]:
  """Shares in proportion to size ** (1 / temperature) (Conneau et al. 2020, XLM-R); 1 is by size, much is even."""
  if temperature < 1:
    raise ValueError(f"mixture.temperature is {temperature}; use 1 (by size) or more")
  powers = {name: count ** (1 / temperature) for name, count in tokens.items()}
  return {name: power / sum(powers.values()) for name, power in powers.items()}


def unimax(tokens: Mapping[str, float], budget: float, max_epochs: float) -> dict[str, float]:
  """As even as possible while no group is repeated more than `max_epochs` times (Chung et al. 2023, UniMax, algorithm 1).

  Args:
    budget: tokens of the run that will use the mixture.
  """
  left, given = budget, {}
  for done, name in enumerate(sorted(tokens, key=lambda n: (tokens[n], n))):
    given[name] = min(left / (len(tokens) - done), tokens[name] * max_epochs)
    left -= given[name]
  return {name: given[name] / sum(given.values()) for name in tokens}


def proxy_runs(given: str | Sequence[Mapping]) -> list[dict]:
  """The runs that a config names: a list of them, or a file that holds one; of each what the fit needs.

  Raises:
    ValueError: there is no such file, or it holds no list of runs.
  """
  try:
    runs = files.read_json(given) if isinstance(given, str) else given
    return [{"shares": {name: float(share) for name, share in run["shares"].items()}, "loss": float(run["loss"])} for run in runs]
  except OSError as e:
    raise ValueError(f"mixture.runs is {given!r}, which cannot be read; give the runs.json of python -m bluelm_jax.proxies, or a list of runs") from e
  except (ValueError, KeyError, TypeError, AttributeError) as e:
    raise ValueError('mixture.runs is no list of runs, each like {"shares": {"zh": 0.5, "en": 0.5}, "loss": 2.1}; mend it') from e


def fitted(groups: Sequence[str], runs: Sequence[Mapping], tokens: Mapping[str, float], seed: int) -> dict[str, float]:
  """Shares with the lowest predicted loss, learnt from proxy runs.

  A mixing law, loss = c + k exp(sum_i t_i share_i) (Ye et al. 2024, arXiv 2403.16952), is fitted to the runs by least squares;
  candidates are drawn around the natural mixture and the best hundred averaged (RegMix, Liu et al. 2024, arXiv 2407.01492).

  Args:
    runs: {"shares": {group: share}, "loss": validation loss} of each proxy run, as `proxy_runs` gives them.

  Raises:
    ValueError: too few runs for the number of groups, or shares that do not add up to 1.
  """
  if len(runs) < len(groups) + 2:
    raise ValueError(f"mixture.runs has {len(runs)} proxy runs for {len(groups)} groups; at least {len(groups) + 2} are needed")
  shares = np.array([[run["shares"].get(name, 0.0) for name in groups] for run in runs], float)
  losses = np.array([run["loss"] for run in runs], float)
  if np.abs(shares.sum(axis=1) - 1).max() > 0.01:
    raise ValueError(f"the shares of a run of mixture.runs do not add up to 1; give shares of {', '.join(groups)}")
  law = fit_law(shares, losses)
  rng = np.random.default_rng(seed)
  prior = np.array([natural(tokens)[name] for name in groups])
  drawn = np.concatenate([rng.dirichlet(np.maximum(prior * scale, 0.05), _CANDIDATES // 4) for scale in (1, 4, 16, 64)])
  best = drawn[np.argsort(predict(law, drawn), kind="stable")[:_AVERAGED]].mean(axis=0)
  return dict(zip(groups, (best / best.sum()).tolist()))


def fit_law(shares: np.ndarray, losses: np.ndarray) -> np.ndarray:
  """(c, t_1 .. t_n) of loss = c + exp(sum_i t_i share_i); k is inside, since shares add up to 1. Shares [R, n], losses [R]."""
  from scipy import optimize  # slow import, for one rule

  def start(c):
    t, *_ = np.linalg.lstsq(shares, np.log(losses - c), rcond=None)
    return np.append(c, t)

  fits = [optimize.least_squares(lambda p: predict(p, shares) - losses, start(losses.min() * f), x_scale="jac") for f in (0.0, 0.5, 0.9)]
  return min(fits, key=lambda f: f.cost).x


def predict(law: np.ndarray, shares: np.ndarray) -> np.ndarray:
  """Losses [R] of mixtures [R, n]."""
  return law[0] + np.exp(np.clip(shares @ law[1:], -50, 50))
