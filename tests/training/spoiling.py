"""Data some of whose batches make the loss no number."""

import numpy as np

from bluelm_jax.data import pack


def iterator(chosen: set[int]) -> type:
  """A `pack.PackIterator` that spoils the batches of these numbers, counted from 1 as the data give them."""

  class Spoiling(pack.PackIterator):
    number = 0

    def __next__(self):
      batch = super().__next__()
      self.number += 1
      if self.number in chosen:
        batch.loss_weights[0, :4] = np.inf
      return batch

    def get_state(self):
      return {**super().get_state(), "number": self.number}

    def set_state(self, state):
      super().set_state(state)
      self.number = state.get("number", 0)

  return Spoiling
