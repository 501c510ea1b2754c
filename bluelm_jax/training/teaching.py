"""A stage that teaches: the likeliest tokens of a teacher, stored for a student's batches. Nothing is trained."""

import contextlib
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np

from bluelm_jax import process
from bluelm_jax import supervise
from bluelm_jax.data import loader
from bluelm_jax.data.batch import Top
from bluelm_jax.interop import load
from bluelm_jax.kernels import chunked_top
from bluelm_jax.kernels.attention import layouts
from bluelm_jax.models import serialize
from bluelm_jax.sharding import rules
from bluelm_jax.training import checks
from bluelm_jax.training import defaults
from bluelm_jax.training import losses
from bluelm_jax.training import preemption
from bluelm_jax.training import record
from bluelm_jax.training import stage
from bluelm_jax.training import state as state_lib
from bluelm_jax.training import store
from bluelm_jax.training import teacher as teacher_lib
from bluelm_jax.training import together
from bluelm_jax.training.metrics import Metrics

_UNUSED = ("init_vision", "trainable", "optimizer", "schedule", "distill.share", "export_every", "keep", "keep_every", "evaluate", "watch", "spikes")
_BYTES = 1 << 28  # of what waits to be written


def run(config, workdir, life: supervise.Life) -> None:
  """Stores what `config.distill.teacher` says of the first `config.steps` batches of the student that the config describes.

  Args:
    workdir: gets stage.json, metrics.jsonl and tensorboard/, the teacher's model.json, the tokenizer, and the store; see
      `training.store`. Files are written every `checkpoint_every` batches, or sooner where much waits. An interrupted run goes on
      after the last; with more steps, a finished one does.
    life: of this process, told of every batch.

  Raises:
    ValueError: a mistake of the user.
    supervise.Preempted: SIGTERM came; what was computed is stored.
  """
  workdir = pathlib.Path(workdir)
  own, default = (record.flat(c.to_dict()) for c in (config, defaults.stage()))
  for key in sorted(own | default):
    if (key in _UNUSED or key.split(".")[0] in _UNUSED) and own.get(key) != default.get(key):
      raise ValueError(f"{key} is set, but a stage that teaches trains nothing; leave it as defaults.stage() has it")
  if config.data.accumulate != defaults.stage().data.accumulate:
    raise ValueError("data.accumulate is set, but a stage that teaches takes batches one by one; set steps to the batches of all steps")
  if config.preset and config.init_from:
    raise ValueError("init_from is set beside preset, but a stage that teaches reads no student's weights; empty it")
  student = stage.described_model(config)
  source = None if config.preset else load.checkpoint_directory(config.init_from)
  tokenizer = stage.own_tokenizer(config, source)
  checks.values(config, student, tokenizer)
  record.check(workdir, config)
  first, data_state = store.stop(workdir), store.state(workdir)
  if first >= config.steps:
    print(f"{config.name}: {first} batches stored before", file=sys.stderr)
    return
  teacher_lib.check(config, student, tokenizer)
  teacher = teacher_lib.described(config, student)
  mesh = rules.make_mesh(config.mesh.to_dict())
  spec, chat = stage.batch_shape(config, student, mesh, tokenizer)
  if data_state:
    store.check_groups(workdir, spec, data_state)
  writes = jax.process_index() == 0  # of what all share
  quarantine = workdir / "quarantine.jsonl" if writes else None
  batches = loader.batches(config.data.sources, chat, spec, config.seed, config.data.workers, quarantine, config.data.max_bad_share)
  stage.try_batch(batches, spec)
  process.cache_programs()
  params = teacher_lib.params(config, student, mesh)

  # All that can be refused has been; from here on the workdir is written to.
  workdir.mkdir(parents=True, exist_ok=True)
  if writes:
    record.write(workdir, config)
    stage.describe(workdir, teacher, tokenizer, {})
  if data_state:
    batches.set_state(data_state["data"])
  with jax.set_mesh(mesh), preemption.notice() as asked:
    _store(config, jit_top(config, teacher, mesh), params, batches, spec, mesh, workdir, first, life, asked)
  together.first_says(config.steps)  # a student that begins at once finds all processes' files
  life.beat(0)


def jit_top(config, teacher, mesh):
  """top(params, batch) -> (Top of the batch, (loss, loss weight, probability of the other tokens)), compiled at its first call."""
  model, k, temperature = serialize.build(teacher), config.distill.top_k, config.distill.temperature

  def top(params, batch):
    order_BS = state_lib.order(batch, config.layout)
    batch = state_lib.arrange(batch, config.layout)
    x_BSD, table_DV, _ = losses.apply_batch(model, params, batch, "readout")
    log_probs_BSN, ids_BSK, of_target_BS = chunked_top.top(x_BSD, table_DV, batch.targets, k, temperature, losses.cut(config.loss_chunks))
    sums = [jnp.sum(v * batch.loss_weights) for v in (-of_target_BS, 1.0, jnp.exp(log_probs_BSN[..., -1]))]
    # A miniature's divergence changes by 1e-4 nats a position in float16, by 8e-4 in bfloat16; the range of either is ample.
    found = Top(log_probs_BSN.astype(jnp.float16), ids_BSK.astype(store.id_type(table_DV.shape[1])))
    return found if order_BS is None else jax.tree.map(lambda x: layouts.undo(x, order_BS), found), sums

  return jax.jit(top, out_shardings=(rules.batch_sharding(mesh), rules.replicated(mesh)))


def _store(config, top, params, batches, spec, mesh, workdir, first, life, asked) -> None:
  """Stores the batches from `first` on."""
  begin, step, rows, sums, tokens = first, first, [], np.zeros(3), []

  def save(stop, data_state):
    store.save(workdir, begin, stop, rows, jax.process_index(), jax.process_count(), {"data": data_state, "groups": spec.groups})

  with contextlib.closing(Metrics(workdir, config.name, config.steps)) as metrics:
    for number, batch, (found, of_batch), data_state in _computed(config, top, params, batches, mesh, first):
      rows += _rows(number, batch, found, spec)
      sums += jax.device_get(of_batch)
      tokens.append(int((batch.segment_ids > 0).sum()))
      step = number + 1
      if number == first:
        metrics.start(step)  # compiled now; leave it out of the rates
      life.beat(step)
      leave = asked()
      if leave or step == config.steps or step - begin == _a_file(config, found):
        save(step, data_state)
        begin, rows = step, []
      if leave or step == config.steps or step % config.log_every == 0:
        loss, weight, others = sums
        values = {"loss": loss / max(weight, 1.0), "other_tokens_probability": others / max(weight, 1.0), **batches.get_stats()}
        metrics.write(step, values, tokens, spec.rows * spec.length * len(tokens))
        sums, tokens = np.zeros(3), []
      if leave:
        raise supervise.Preempted(f"{config.name} was asked to end and stored {step} batches of {config.steps}; run the same command again to go on")
    if step < config.steps:
      if step > begin:
        save(step, data_state)
      raise ValueError(f"the data end after batch {step} of {config.steps}; raise the sources' epochs or caps, or set steps = {step}")


def _computed(config, top, params, batches, mesh, first):
  """(number, batch, what `top` makes of it, the data's state after it) from `first` on, until the data end; the next is under way while one is looked at."""
  before = None
  for number in range(first, config.steps):
    if (batch := next(batches, None)) is None:
      break
    now = number, batch, top(params, stage.put_batch(batch, rules.batch_sharding(mesh))), batches.get_state()
    if before:
      yield before
    before = now
  if before:
    yield before


def _a_file(config, found: Top) -> int:
  """Batches of a file, the same for all processes."""
  return min(config.checkpoint_every, max(_BYTES // (found.log_probs.nbytes + found.ids.nbytes), 1))


def _rows(number: int, batch, found: Top, spec) -> list[store.Row]:
  """The rows that this process holds, each by one process alone."""
  rows = []
  for log_probs, ids in zip(found.log_probs.addressable_shards, found.ids.addressable_shards, strict=True):
    if log_probs.replica_id:
      continue
    first = log_probs.index[0].start or 0
    for row, of_row in enumerate(zip(np.asarray(log_probs.data), np.asarray(ids.data)), first):
      learnt_S = batch.loss_weights[row] > 0
      rows.append(store.Row(number, store.checksum(batch, row, spec.tokens_per_tile), *(x[learnt_S] for x in of_row)))
  return rows
