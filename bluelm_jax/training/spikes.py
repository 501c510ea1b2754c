"""Steps that would harm: no finite loss or gradient, or a gradient far larger than usual.

Such a step is bad: parameters, moments and the running mean of norms stay as they were, on the device, with no word to
the host. After too many in a row nothing is learnt until the loop, where it logs or saves, has gone back to the last
regular checkpoint before them; the data go on behind the batch that was one too many. So what a run learns does not depend
on when the loop looks, or, if two checkpoints are kept, on where it was stopped.
"""

import pathlib
import sys
from typing import Any, Callable, NamedTuple, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from bluelm_jax.training import jsonl

FILE_NAME = "spikes.jsonl"


class Rule(NamedTuple):
  """When a step is bad: `config.spikes`, and what it leaves to us.

  Attributes:
    factor: times the running mean that a gradient norm may be; 0 asks only whether numbers are finite.
    patience: bad steps in a row after which the run goes back.
    rollbacks: that may follow each other without progress.
    window: steps over which the mean runs.
    warmup: good steps before the first norm is judged, at least 1.
  """

  factor: float
  patience: int
  rollbacks: int
  window: int = 100
  warmup: int = 100


class Guard(NamedTuple):
  """What the train state remembers; scalars on the device, numbers in a checkpoint.

  Attributes:
    mean: float32, of the gradient norms of good steps: all of them until `window`, from then on exponential.
    good: int32, how many that were.
    row: int32, bad steps in a row until now.
    rollbacks: int32, since the run last got further than it had been.
    reached: int32, the step from which it last went back.
  """

  mean: Any
  good: Any
  row: Any
  rollbacks: Any
  reached: Any


def start() -> Guard:
  return Guard(jnp.float32(0), *[jnp.int32(0)] * 4)


def judge(rule: Rule, guard: Guard, step, loss, norm) -> tuple[jax.Array, Guard]:
  """(whether `step` is bad, what is remembered of it), from its loss and the global norm of its gradient before clipping."""
  bad = ~jnp.isfinite(loss) | ~jnp.isfinite(norm) | (guard.row >= rule.patience)
  if rule.factor:
    bad |= (guard.good >= rule.warmup) & (norm > rule.factor * guard.mean)
  share = jnp.maximum(1.0 / rule.window, 1.0 / (guard.good + 1))
  rollbacks = jnp.where(step > guard.reached, 0, guard.rollbacks)
  better = Guard(guard.mean + share * (norm - guard.mean), guard.good + 1, jnp.zeros_like(guard.row), rollbacks, guard.reached)
  return bad, unless(bad, guard._replace(row=guard.row + 1), better)


def unless(bad, before, after):
  """`after`, or what was `before` where the step is bad; on donated arrays it costs no memory."""
  return jax.tree.map(lambda old, new: jnp.where(bad, old, new), before, after)


def place(values: dict, like: Guard) -> Guard:
  """A checkpoint's numbers on the devices of `like`."""
  return jax.tree.map(lambda x, value: jax.device_put(np.asarray(value, x.dtype), x.sharding), like, Guard(**values))


class File:
  """`spikes.jsonl` of a workdir: a line a bad step, with what its batches held, and a line a roll-back."""

  def __init__(self, workdir, names: Sequence[str], step: int):
    """
    Args:
      names: of the sources, in the mixture's order.
      step: with which the run goes on; lines of later ones will come again.
    """
    self._path, self._names = pathlib.Path(workdir) / FILE_NAME, names
    jsonl.keep(self._path, step)

  def bad(self, step: int, values: dict, placed: Sequence[np.ndarray]) -> None:
    """
    Args:
      values: of the step; see `state.update`.
      placed: of each of its batches, `PackIterator.get_placed`.
    """
    numbers = {name: float(values[name]) for name in ("loss", "grad_norm", "grad_norm_mean")}
    numbers = {name: value if np.isfinite(value) else str(value) for name, value in numbers.items()}
    batches = [{name: part[part[:, 1] == i][:, [0, 2, 3]].tolist() for i, name in enumerate(self._names)} for part in placed]
    jsonl.append(self._path, {"step": step, **numbers, "row, example, piece by source": batches})

  def went_back(self, step: int, to: int) -> None:
    jsonl.append(self._path, {"step": step, "went_back_to": to})
    if jax.process_index() == 0:
      print(f"warning: the steps up to {step} were bad; going on from step {to} with the data behind them, see {self._path}", file=sys.stderr)


def go_back(rule: Rule, checkpoints, state, file: File, regular: Callable[[int], bool]):
  """The state of the newest whole checkpoint from before the bad steps; while there is none, what they left as it was.

  Later checkpoints are removed. The old state's memory is freed first.

  Args:
    regular: whether a step is saved in every run; one that was stopped in between has others too, which serve where there is no better.

  Raises:
    ValueError: the run went back as often as it may.
  """
  at, guard = int(state.step), jax.device_get(state.guard)
  if guard.rollbacks == rule.rollbacks:
    raise ValueError(
        f"{rule.patience} steps in a row up to {at} were bad, after {rule.rollbacks} roll-backs without progress; lower optimizer.learning_rate, "
        f"raise schedule.warmup or spikes.factor, or mend the data that {FILE_NAME} names")
  checkpoints.wait()
  before = at - int(guard.row)
  saved = [s for s in checkpoints.steps() if s <= before]
  if saved:
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
    jax.tree.map(lambda x: x.delete(), state)
    state, _ = checkpoints.restore(like, max(filter(regular, saved), default=saved[-1]))
    checkpoints.remove_after(int(state.step))
  else:  # the steps after the batch that was one too many will be made again
    state = state._replace(step=jax.device_put(np.int32(before + rule.patience), state.step.sharding))
  remembered = jax.device_get(state.guard)._replace(row=0, rollbacks=guard.rollbacks + 1, reached=max(at, guard.reached))
  file.went_back(at, int(state.step))
  return state._replace(guard=place(remembered._asdict(), state.guard))
