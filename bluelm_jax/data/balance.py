"""Which rows of a batch go to which data-parallel rank.

Shapes: B rows, R ranks (row groups), K = B / R rows a rank, L loads.
"""

import numpy as np

# A rank's loads are its tokens, its attention (sum of squared lengths) and its tiles: how far from the mean each may be.
_TOLERANCE = np.array([0.02, 0.10, 0.02])
_LOOSE = np.array([0.02, 0.10, 0.30])
_WORTH = -0.01  # the change of the sum, in squared tolerances, for which rows are swapped


def assign(loads_BL: np.ndarray, groups: int, slots: int) -> np.ndarray:
  """An order of rows, int [B], in which each next K rows load their rank alike and hold at most `slots` tiles.

  Args:
    loads_BL: tokens, squared lengths and tiles of each row. In the order they come, ranks keep to `slots`.
    groups: R.
  """
  order_RK = np.arange(len(loads_BL)).reshape(groups, -1)
  if groups == 1 or groups == len(loads_BL):
    return order_RK.reshape(-1)
  x_BL = loads_BL / np.maximum(loads_BL.sum(0) / groups, 1e-9)
  limit = slots / max(loads_BL[:, 2].sum() / groups, 1e-9) + 1e-6
  near = _swap(order_RK, x_BL, _TOLERANCE, limit)
  # Tiles hold rows with long documents where they are: a second try lets go of them at first.
  far = _swap(_swap(order_RK, x_BL, _LOOSE, np.inf), x_BL, _TOLERANCE, limit)
  return min((_over(far, x_BL, limit), _cost(far, x_BL), 1, far), (0.0, _cost(near, x_BL), 0, near))[3].reshape(-1)


def _over(order_RK, x_BL, limit) -> float:
  return np.maximum(x_BL[order_RK, 2].sum(1) - limit, 0).sum()


def _cost(order_RK, x_BL) -> float:
  return (((x_BL[order_RK].sum(1) - 1) / _TOLERANCE) ** 2).sum()


def _swap(order_RK, x_BL, tolerance_L, limit):
  """Swaps two rows, one of the rank furthest from the mean, as long as the sum of squared deviations falls."""
  order_RK, x_RKL, limit = order_RK.copy(), x_BL[order_RK] / tolerance_L, limit / tolerance_L[2]
  over = lambda tiles: np.maximum(tiles - limit, 0)
  sum_RL = x_RKL.sum(1)
  mean_L = sum_RL.mean(0)
  settled_R = np.zeros(len(order_RK), bool)
  while not settled_R.all():
    a = np.argmax(np.where(settled_R, -1, ((sum_RL - mean_L) ** 2).sum(1)))
    gain_KRKL = x_RKL - x_RKL[a][:, None, None]
    change_KRK = np.einsum("krjl,krjl->krj", gain_KRKL, gain_KRKL + (sum_RL[a] - sum_RL)[:, None])
    mine, theirs, gain = sum_RL[a, 2], sum_RL[:, None, 2], gain_KRKL[..., 2]
    change_KRK[over(mine + gain) + over(theirs - gain) > over(mine) + over(theirs)] = np.inf
    i, b, j = np.unravel_index(change_KRK.argmin(), change_KRK.shape)
    settled_R[a] = change_KRK[i, b, j] > _WORTH
    if not settled_R[a]:
      gain_L = gain_KRKL[i, b, j].copy()
      sum_RL[a], sum_RL[b] = sum_RL[a] + gain_L, sum_RL[b] - gain_L
      order_RK[a, i], order_RK[b, j] = order_RK[b, j], order_RK[a, i]
      x_RKL[a, i], x_RKL[b, j] = x_RKL[a, i] + gain_L, x_RKL[b, j] - gain_L
      settled_R[b] = False
  return order_RK
