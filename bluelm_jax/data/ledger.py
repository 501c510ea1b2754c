"""What a mixture has given: tokens and epochs by source, and its bad examples. Small, and saved with a checkpoint."""

import collections
from typing import Sequence

from bluelm_jax.data import faults
from bluelm_jax.data import mixture
from bluelm_jax.data.batch import Example


class Ledger:
  """Counts as examples are read and placed; `set_state(get_state())` goes on counting."""

  def __init__(self, names: Sequence[str], plan: mixture.Plan, quarantine=None, max_bad_share: float = 0.01):
    """
    Args:
      names: of the sources, in the plan's order.
      quarantine: a JSONL file for bad records; None writes none.
      max_bad_share: of the examples read; more bad ones are a ValueError.
    """
    self._names, self._plan = names, plan
    self._quarantine = faults.Quarantine(names, quarantine, max_bad_share)
    self._tokens = collections.Counter()

  def bad(self, bad: faults.Bad, read: int) -> None:
    """Takes in a bad example among the `read` so far."""
    self._quarantine.add(bad, read)

  def placed(self, example: Example) -> None:
    """Counts an example that goes into a batch."""
    self._tokens[self._names[example.source]] += len(example.tokens)

  def get_stats(self, read: int) -> dict[str, float]:
    """"tokens/NAME" in batches, "epoch/NAME" passes through the data, parts of one too, and "bad/KIND" examples."""
    found = {f"tokens/{name}": float(self._tokens[name]) for name in self._names}
    for name, part, count in zip(self._names, self._plan.parts, self._plan.counts(read)):
      if part.epoch:
        found[f"epoch/{name}"] = count / part.epoch
    return found | {f"bad/{kind}": float(n) for kind, n in sorted(self._quarantine.counts.items())}

  def get_state(self) -> dict[str, dict[str, int]]:
    return {"tokens": dict(self._tokens), "bad": dict(self._quarantine.counts)}

  def set_state(self, state) -> None:
    self._tokens = collections.Counter(state.get("tokens", {}))
    self._quarantine.counts = collections.Counter(state.get("bad", {}))
