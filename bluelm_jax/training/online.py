"""The loss on held-out data while a stage trains.

`evaluation.jsonl` gets a line for every step at which one is due, and is the truth about which are made. A process that
ended before its line was written leaves the evaluation to the next, which makes it where it finds the step's
parameters: in the checkpoint, or when it comes to that step again. A line that is there is never made again, for steps that
are made again are the same; only where a run goes back and on with other data (see `spikes`) are later lines dropped.
"""

import itertools
import json
import pathlib
from typing import Callable

import jax
import numpy as np

from bluelm_jax.sharding import chips
from bluelm_jax.sharding import rules
from bluelm_jax.training import jsonl
from bluelm_jax.training import state as state_lib
from bluelm_jax.training import together

FILE_NAME = "evaluation.jsonl"
SEED = 0  # of the held-out batches, which are the same in every run


def read(workdir) -> dict[int, dict]:
  """The lines of a workdir by step; a last one that was cut is none.

  Raises:
    ValueError: the file is damaged.
  """
  file = pathlib.Path(workdir) / FILE_NAME
  lines = file.read_text().splitlines(keepends=True) if file.exists() else []
  try:
    records = [json.loads(line) for line in lines if line.endswith("\n")]
    return {record["step"]: record for record in records}
  except (ValueError, KeyError, TypeError) as e:
    raise ValueError(f"{file} is damaged ({e}); remove the line, and its step stays without an evaluation") from e


def due(config, step: int) -> bool:
  """Whether the step wants an evaluation: every `evaluate.every`-th does, and the last."""
  every = config.evaluate.every
  return bool(every and step and (step % every == 0 or step == config.steps))


def missing(config, workdir, step: int) -> bool:
  """Whether the evaluation of a step is still to be made."""
  return due(config, step) and bool(together.first_says(step not in read(workdir)))


def jit_losses(config, model, mesh):
  """losses(trainable, frozen, batch) -> (sums, weights), float32 [sources] each, by source in the order of names; compiled at its first call.

  A student that follows a teacher is measured by its own cross-entropy.
  """
  objective = "dense" if config.objective == "dense" else "lm"
  loss_sum = state_lib.make_loss(model, len(config.evaluate.sources), objective, config.loss_chunks)

  def losses(trainable, frozen, batch):
    _, (counts, _) = loss_sum(trainable, frozen, state_lib.arrange(batch, config.layout))
    return counts["loss_sums"], counts["loss_weights"]

  kind = mesh.devices.flat[0].device_kind
  return jax.jit(losses, out_shardings=rules.replicated(mesh), compiler_options=chips.compiler_options(kind))


class Evaluation:
  """Evaluations of one stage in one process.

  Args:
    losses: of `jit_losses`.
    batches: a `PackIterator` of the held-out data; every evaluation begins where it now stands. It may end before `evaluate.batches`.
    put: a host batch to the mesh.
  """

  def __init__(self, config, workdir, losses, batches, put):
    self._config, self._workdir = config, pathlib.Path(workdir)
    self._losses, self._batches, self._put = losses, batches, put
    self._start = batches and batches.get_state()
    jsonl.keep(self._workdir / FILE_NAME)

  def missing(self, step: int) -> bool:
    return missing(self._config, self._workdir, step)

  def make(self, step: int, state, asked: Callable[[], bool], beat: Callable[[int], None]) -> dict[str, float] | None:
    """Evaluates the parameters of a step; None, and nothing is written, where the process was asked to leave meanwhile.

    Returns:
      "loss" in nats a token, "loss/SOURCE", "loss_tokens", "batches", and "overlong/..." where data.overlong took something away.
    """
    self._batches.set_state(self._start)
    found = []
    for batch in itertools.islice(self._batches, self._config.evaluate.batches):
      if asked():
        return None
      found.append(self._losses(state.trainable, state.frozen, self._put(batch)))
      jax.block_until_ready(found[-2:-1])  # no more than two batches wait on the devices
      beat(step)
    sums, weights = (np.sum(part, axis=0, dtype=np.float64) for part in zip(*jax.device_get(found)))
    mean = lambda total, weight: float(total / max(weight, 1.0))
    names = sorted(self._config.evaluate.sources)
    by_source = {f"loss/{name}": mean(*of) for name, *of in zip(names, sums, weights) if of[1]}
    overlong = {k: n for k, n in self._batches.get_stats().items() if k.startswith("overlong/")}
    return {"loss": mean(sums.sum(), weights.sum()), **by_source, "loss_tokens": float(weights.sum()), "batches": len(found), **overlong}

  def write(self, step: int, values: dict[str, float]) -> None:
    jsonl.append(self._workdir / FILE_NAME, {"step": step, **values})

  def forget_after(self, step: int) -> None:
    jsonl.keep(self._workdir / FILE_NAME, step)
