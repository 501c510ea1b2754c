"""Steps in a row: batches in, metrics, checkpoints and exports out."""

import contextlib
import shutil
from typing import Any, NamedTuple

import jax
import numpy as np

from bluelm_jax import supervise
from bluelm_jax.interop import compose
from bluelm_jax.training import accumulate
from bluelm_jax.training import online
from bluelm_jax.training import preemption
from bluelm_jax.training import profiling
from bluelm_jax.training import spikes
from bluelm_jax.training import watch
from bluelm_jax.training.metrics import Metrics


class _Step(NamedTuple):
  """A step until it is logged.

  Attributes:
    number: 1 is the first.
    values: its metrics, on the device.
    placed: what each of its batches held.
    data_state: behind it.
  """

  number: int
  values: dict[str, Any]
  placed: list[np.ndarray]
  data_state: dict


def train(config, step_fn, several, state, teacher, batches, put, spec, checkpoints, evaluation, meter, workdir, last, life, clock) -> None:
  """Trains to the step `last` and leaves a checkpoint of it.

  Args:
    step_fn: (state, batch, teacher) -> (state, metrics), for steps of one batch.
    several: `accumulate.Programs` for steps of several; None where there are none.
    put: a host batch to the mesh.
    evaluation: `online.Evaluation` of the stage.
    meter: `utilization.Meter` of the stage.

  Raises:
    ValueError: the data end, or too many steps are bad; see `spikes`.
    supervise.Preempted: SIGTERM came; the step that was under way is saved.
  """
  step, pending, waits, sums, compiled, under_way = int(state.step), [], [], None, set(), None
  rule, file = spikes.Rule(**config.spikes), spikes.File(workdir, sorted(config.data.sources), step)
  clock.write(step)
  with (
      preemption.notice() as asked, contextlib.closing(Metrics(workdir, config.name, config.steps, meter)) as metrics,
      contextlib.closing(profiling.Profiles(config, workdir)) as profiles):
    if not _evaluate(evaluation, step, state, asked, metrics, life, clock):
      raise _preempted(config, step)
    life.beat(0)  # compiling takes a while
    while step < last:
      profiles.follow(step, state)
      count = accumulate.batches(config.data.accumulate, step)
      waits.append(0.0)
      placed = []
      for _ in range(count):
        batch, waited = next_batch(batches, under_way, clock)
        waits[-1] += waited
        if batch is None:
          checkpoints.save(state, batches.get_state())
          raise ValueError(f"the data end after step {step} of {config.steps}; raise the sources' epochs or caps, or set steps = {step} in a new --workdir")
        placed.append(batches.get_placed())
        batch = put(batch)
        if count == 1:
          state, values = step_fn(state, batch, teacher)
        else:
          sums = several.add(state, several.start(state, batch, teacher) if sums is None else sums, batch, teacher)
          under_way = sums.counts["loss_tokens"]
          if False not in compiled:
            clock.mark("compile")
      if count > 1:
        state, sums, values = several.apply(state, sums)
      under_way = values["loss"]
      step += 1
      if config.watch.every and step % config.watch.every:
        del values["watch"]  # zeros
      pending.append(_Step(step, {**values, "batches": count}, placed, batches.get_state()))
      if (count == 1) not in compiled:  # now it is; leave it out of the rates
        clock.mark("compile")
        jax.block_until_ready(state.step)
        metrics.start(step)
        compiled.add(count == 1)
      life.beat(step)
      leave = asked()
      wanted = config.export_every and step % config.export_every == 0
      logs = step % config.log_every == 0 or step == last or leave or online.due(config, step)
      saves = step % config.checkpoint_every == 0 or step == last or leave or wanted
      row = int(state.guard.row) if logs or saves else 0
      if logs or row >= rule.patience:
        beside = {**batches.get_stats(), "data_wait_seconds": np.mean(waits)}
        values = jax.device_get([s.values for s in pending])
        _log(metrics, meter, config, step, values, spec, beside)
        for v, s in zip(values, pending):
          if 0 < v["bad_in_a_row"] <= rule.patience:  # later ones were not looked at
            file.bad(s.number, v, s.placed)
        clock.mark("steps")
        clock.write(step)
        if row >= rule.patience:
          life.beat(0)  # the next takes a while
          batches.set_state(next(s.data_state for v, s in zip(values, pending) if v["bad_in_a_row"] >= rule.patience))
          profiles.close()
          state = spikes.go_back(rule, checkpoints, state, file, lambda s: s % config.checkpoint_every == 0)
          step, row = int(state.step), 0
          clock.went_back(step)
          saves, wanted = step == last or leave, False
          _remove_exports(workdir, step)
          evaluation.forget_after(step)
          metrics.forget_after(step)
          metrics.start(step)
          clock.mark("restore")
          clock.write(step)
        pending, waits = [], []
      if saves and (not row or step == last or leave or wanted):  # what is kept is not pushed out by steps that learn nothing
        clock.mark("steps")
        checkpoints.save(state, batches.get_state())
        clock.mark("checkpoint")
        clock.write(step)
      if not leave and not _evaluate(evaluation, step, state, asked, metrics, life, clock):
        leave = True
        checkpoints.save(state, batches.get_state())
      if leave or wanted:
        life.beat(0)  # the next takes a while
        checkpoints.wait()
        clock.mark("checkpoint")
        clock.write(step)
      if leave:
        raise _preempted(config, step)
      if wanted:
        export(config, workdir, step)
        clock.mark("checkpoint")


def next_batch(batches, under_way, clock):
  """(the next batch; None where the data end, seconds that the devices waited for it too).

  Args:
    under_way: an output of the program that was started last; while it is not there, nothing is lost by waiting.
  """
  clock.mark("steps")
  batch = next(batches, None)
  idle = under_way is None or under_way.is_ready()
  return batch, clock.mark("input") if idle else 0.0


def _evaluate(evaluation, step, state, asked, metrics, life, clock) -> bool:
  """Makes the evaluation of a step if it is due and not there yet; False where SIGTERM came first."""
  if not evaluation.missing(step):
    return True
  clock.mark("steps")
  life.beat(0)  # the first compiles
  values = evaluation.make(step, state, asked, life.beat)
  seconds = clock.mark("evaluation")
  if values is not None:
    metrics.evaluated(step, values, seconds)
    evaluation.write(step, values)
  clock.write(step)
  return values is not None


def _preempted(config, step) -> supervise.Preempted:
  return supervise.Preempted(f"{config.name} was asked to end and saved step {step} of {config.steps}; run the same command again to go on")


def export(config, workdir, step) -> None:
  """The HuggingFace form of the newest checkpoint, which is of `step`, if the config wants one and it is not there yet."""
  output = workdir / "export" / str(step)
  if config.export_every and not output.exists():
    compose.export(workdir, output)


def _remove_exports(workdir, step) -> None:
  """Of steps that will be made again."""
  for directory in (workdir / "export").glob("*") if jax.process_index() == 0 else ():
    if directory.name.isdigit() and int(directory.name) > step:
      shutil.rmtree(directory)


def _log(metrics, meter, config, step, values, spec, beside):
  """Averages loss over the tokens of good steps, not over steps, all and by source; `beside` it stands what the sources have given until now."""
  good = [v for v in values if not v["bad_in_a_row"]]
  for at, v in enumerate(values, step - len(values) + 1):
    if "watch" in v:
      metrics.watch(at, watch.scalars(v["watch"]))
  total = lambda key, of: np.sum([v[key] for v in of], axis=0, dtype=np.float64)
  scalars = {
      "tokens_per_step": total("tokens", values) / len(values), "image_token_share": total("image_tokens", values) / max(total("tokens", values), 1.0),
      "skipped": len(values) - len(good), **beside}
  if good:
    tokens, of_sources = total("loss_tokens", good), zip(sorted(config.data.sources), total("loss_sums", good), total("loss_weights", good))
    scalars = {
        "loss": np.sum(total("loss_sums", good)) / max(tokens, 1.0), "grad_norm": total("grad_norm", good) / len(good), "loss_tokens": tokens,
        **{f"loss/{name}": loss / weight for name, loss, weight in of_sources if weight},
        **{key: total(key, good) / max(tokens, 1.0) for key in good[0] if key.startswith("loss_parts/")}, **scalars}
  slots = spec.rows * spec.length * int(total("batches", values))
  metrics.write(step, scalars, [int(v["tokens"]) for v in values], slots, [meter.flops(v) for v in values])
