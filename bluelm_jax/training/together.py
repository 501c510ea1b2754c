"""What several processes must decide alike."""

import jax
from jax.experimental import multihost_utils
import numpy as np


def first_says(value: int) -> int:
  """The first process's value; of several processes all must ask, and wait for it."""
  return int(multihost_utils.broadcast_one_to_all(np.int32(value))) if jax.process_count() > 1 else int(value)
