"""Steps in a row: batches in, metrics, checkpoints and exports out."""

import contextlib

import jax
import numpy as np

from bluelm_jax import supervise
from bluelm_jax.interop import compose
from bluelm_jax.training import accumulate
from bluelm_jax.training import online
from bluelm_jax.training import preemption
from bluelm_jax.training import profiling
from bluelm_jax.training.metrics import Metrics


def train(config, step_fn, several, state, teacher, batches, put, spec, checkpoints, evaluation, meter, workdir, last, life, clock) -> None:
  """Trains to the step `last` and leaves a checkpoint of it.

  Args:
    step_fn: (state, batch, teacher) -> (state, metrics), for steps of one batch.
    several: `accumulate.Programs` for steps of several; None where there are none.
    put: a host batch to the mesh.
    evaluation: `online.Evaluation` of the stage.
    meter: `utilization.Meter` of the stage.

  Raises:
    ValueError: the data end, or the loss is no number.
    supervise.Preempted: SIGTERM came; the step that was under way is saved.
  """
  step, pending, waits, sums, compiled = int(state.step), [], [], None, set()
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
      for _ in range(count):
        clock.mark("steps")
        batch = next(batches, None)
        waits[-1] += clock.mark("input")
        if batch is None:
          checkpoints.save(state, batches.get_state())
          raise ValueError(f"the data end after step {step} of {config.steps}; raise the sources' epochs or caps, or set steps = {step} in a new --workdir")
        batch = put(batch)
        if count == 1:
          state, values = step_fn(state, batch, teacher)
        else:
          sums = several.add(state, several.start(state, batch, teacher) if sums is None else sums, batch, teacher)
      if count > 1:
        state, sums, values = several.apply(state, sums)
      step += 1
      pending.append({**values, "batches": count})
      if (count == 1) not in compiled:  # now it is; leave it out of the rates
        clock.mark("compile")
        jax.block_until_ready(state.step)
        metrics.start(step)
        compiled.add(count == 1)
      life.beat(step)
      leave = asked()
      wanted = config.export_every and step % config.export_every == 0
      if step % config.log_every == 0 or step == last or leave or online.due(config, step):
        beside = {**batches.get_stats(), "data_wait_seconds": np.mean(waits)}
        _log(metrics, meter, step, jax.device_get(pending), spec, sorted(config.data.sources), beside)
        pending, waits = [], []
        clock.mark("steps")
        clock.write(step)
      if step % config.checkpoint_every == 0 or step == last or leave or wanted:
        _refuse_broken(step, jax.device_get(pending))  # a good checkpoint is not replaced by a broken one
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


def _evaluate(evaluation, step, state, asked, metrics, life, clock) -> bool:
  """Makes the evaluation of a step if it is due and not there yet; False where SIGTERM came first."""
  if not evaluation.missing(step):
    return True
  clock.mark("steps")
  life.beat(0)  # the first compiles
  values = evaluation.make(step, state, asked, life.beat)
  if values is not None:
    metrics.evaluated(step, values)
    evaluation.write(step, values)
  clock.mark("evaluation")
  clock.write(step)
  return values is not None


def _preempted(config, step) -> supervise.Preempted:
  return supervise.Preempted(f"{config.name} was asked to end and saved step {step} of {config.steps}; run the same command again to go on")


def export(config, workdir, step) -> None:
  """The HuggingFace form of the newest checkpoint, which is of `step`, if the config wants one and it is not there yet."""
  output = workdir / "export" / str(step)
  if config.export_every and not output.exists():
    compose.export(workdir, output)


def _log(metrics, meter, step, values, spec, names, of_sources):
  """Averages loss over tokens, not over steps, all and by source; beside it stands what the sources have given until now."""
  sums = {k: np.sum([v[k] for v in values], axis=0, dtype=np.float64) for k in values[0]}
  _refuse_broken(step, values)
  parts = {name: total / max(sums["loss_tokens"], 1.0) for name, total in sums.items() if name.startswith("loss_parts/")}
  by_source = {f"loss/{name}": loss / weight for name, loss, weight in zip(names, sums["loss_sums"], sums["loss_weights"]) if weight}
  scalars = {
      "loss": np.sum(sums["loss_sums"]) / max(sums["loss_tokens"], 1.0), "grad_norm": sums["grad_norm"] / len(values), "loss_tokens": sums["loss_tokens"],
      "tokens_per_step": sums["tokens"] / len(values), "image_token_share": sums["image_tokens"] / max(sums["tokens"], 1.0),
      **by_source, **parts, **of_sources}
  slots = spec.rows * spec.length * int(sums["batches"])
  metrics.write(step, scalars, [int(v["tokens"]) for v in values], slots, [meter.flops(v) for v in values])


def _refuse_broken(step, values):
  for v in values:
    if not np.isfinite(v["loss"]):
      raise ValueError(f"the loss is {v['loss']} by step {step}; lower optimizer.learning_rate or raise schedule.warmup")
