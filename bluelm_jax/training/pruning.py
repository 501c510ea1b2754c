"""A stage that prunes: the checkpoint it starts from, cut down to its preset. Nothing is trained."""

import functools
import json
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax

from bluelm_jax import process
from bluelm_jax import supervise
from bluelm_jax.compression import choose
from bluelm_jax.compression import fit
from bluelm_jax.compression import importance as importance_lib
from bluelm_jax.compression import prune
from bluelm_jax.data import loader
from bluelm_jax.data.tokenizer import Tokenizer
from bluelm_jax.interop import compose
from bluelm_jax.interop import hf_config
from bluelm_jax.interop import load
from bluelm_jax.kernels.cross_entropy import token_log_probs
from bluelm_jax.models import serialize
from bluelm_jax.sharding import rules
from bluelm_jax.training import checks
from bluelm_jax.training import defaults
from bluelm_jax.training import losses
from bluelm_jax.training import optimizer as optimizer_lib
from bluelm_jax.training import record
from bluelm_jax.training import stage
from bluelm_jax.training import state as state_lib
from bluelm_jax.training.checkpoints import Checkpoints
from bluelm_jax.training.metrics import Metrics

LINEAGE = "pruning.json"
_UNUSED = ("trainable", "optimizer", "schedule", "zero", "distill", "loss_chunks", "export_every", "evaluate", "watch", "spikes")


def run(config, workdir, life: supervise.Life) -> None:
  """Prunes the model of `config.init_from` to `config.preset` by importance on `config.steps` batches.

  Args:
    workdir: gets what a trained stage's does, with one checkpoint at the last step; and pruning.json, which says what was
      kept of which teacher, and by which scores. An interrupted run has no checkpoint and begins anew.
    life: of this process, told of every batch.
  """
  workdir = pathlib.Path(workdir)
  for key in _UNUSED:
    if config[key] != defaults.stage()[key]:
      raise ValueError(f"{key} is set, but a stage that prunes trains nothing; leave it as defaults.stage() has it")
  if config.data.accumulate != defaults.stage().data.accumulate:
    raise ValueError("data.accumulate is set, but a stage that prunes takes batches one by one; set more steps")
  if not config.preset or not config.init_from:
    raise ValueError("pruning needs a preset, the student, and init_from, its teacher's checkpoint; set both")
  student = stage.described_model(config)
  record.check(workdir, config)
  if record.latest_step(workdir) is not None:
    print(f"{config.name}: pruned before", file=sys.stderr)
    return
  source = load.checkpoint_directory(config.init_from)
  teacher = described_teacher(config, source)
  fit.check(teacher, student)
  tokenizer = Tokenizer(config.tokenizer or source / "tokenizer.json", hf_config.end_ids(source))
  checks.values(config, student, tokenizer)
  mesh = rules.make_mesh(config.mesh.to_dict())
  spec, chat = stage.batch_shape(config, teacher, mesh, tokenizer)
  quarantine = workdir / "quarantine.jsonl" if jax.process_index() == 0 else None
  batches = loader.batches(config.data.sources, chat, spec, config.seed, config.data.workers, quarantine, config.data.max_bad_share)
  stage.try_batch(batches, spec)
  process.cache_programs()
  _, tensors = load.open_checkpoint(source)
  like = stage.abstract_state(config, serialize.build(teacher), optax.identity(), mesh)
  params = optimizer_lib.merge(_placed(tensors, like), {})

  # All that can be refused has been; from here on the workdir is written to.
  workdir.mkdir(parents=True, exist_ok=True)
  first = jax.process_index() == 0  # it alone writes
  if first:
    record.write(workdir, config)
    stage.describe(workdir, student, tokenizer, compose.companions(source))
  with jax.set_mesh(mesh):
    rows = _rows(config, serialize.build(teacher), params, batches, spec, mesh, Metrics(workdir, config.name, config.steps), life)
    importance = importance_lib.gather(rows)
  life.beat(0)  # cutting and saving take a while
  del params  # its place is the student's
  decoders = (getattr(c, "decoder", c) for c in (teacher, student))
  kept = choose.choose(importance, *decoders)
  if first:
    _write_lineage(workdir, source, teacher, student, importance, kept)
  state = _student(config, student, prune.prune(tensors, teacher, student, kept), mesh)
  checkpoints = Checkpoints(workdir, config.keep)
  try:
    checkpoints.save(state, batches.get_state())
  finally:
    checkpoints.close()


def described_teacher(config, source: pathlib.Path):
  """The model to be pruned, computed as `config.execution` says."""
  of_source = config.copy_and_resolve_references()
  of_source.preset = ""
  return stage.described_model(of_source, source)


def jit_scores(model, layout: str, mesh):
  """scores(params, batch) -> (Importance of every row, its tokens, (loss, loss weight)), compiled at its first call."""

  def scores(params, batch):
    batch = state_lib.arrange(batch, layout)
    forward = functools.partial(losses.apply_batch, model, params, batch)
    logits_BSV, found, tokens_B = importance_lib.watch(forward, batch.segment_ids)
    loss = -jnp.sum(token_log_probs(logits_BSV, batch.targets) * batch.loss_weights)
    return found, tokens_B, (loss, jnp.sum(batch.loss_weights))

  return jax.jit(scores, out_shardings=rules.replicated(mesh))


def _rows(config, model, params, batches, spec, mesh, metrics, life):
  """(scores of the rows, their tokens) of every batch of calibration; logs the teacher's loss on them."""
  scores = jit_scores(model, config.layout, mesh)
  loss, weight, tokens = 0.0, 0.0, []
  for step in range(1, config.steps + 1):
    if (batch := next(batches, None)) is None:
      raise ValueError(f"the data end after batch {step - 1} of {config.steps}; raise the sources' epochs or caps, or set steps = {step - 1}")
    found, tokens_B, sums = jax.device_get(scores(params, stage.put_batch(batch, rules.batch_sharding(mesh))))
    if step == 1:
      metrics.start(step)  # compiled now; leave it out of the rates
    life.beat(step)
    loss, weight = loss + sums[0], weight + sums[1]
    tokens.append(int(tokens_B.sum()))
    yield found, tokens_B
    if step % config.log_every == 0 or step == config.steps:
      metrics.write(step, {"loss": loss / max(weight, 1.0)}, tokens, spec.rows * spec.length * len(tokens))
      loss, weight, tokens = 0.0, 0.0, []
  metrics.close()


def _placed(tensors, like) -> dict[str, jax.Array]:
  """Parameters by path, in the dtypes and on the devices of a described state; one at a time passes through host memory."""
  _, shapes, shardings = like
  place = lambda p: jax.device_put(tensors[p].read().astype(shapes.trainable[p].dtype, copy=False), shardings.trainable[p])
  return {p: place(p) for p in tensors}


def _student(config, model_config, tensors, mesh) -> state_lib.TrainState:
  """The pruned parameters, and random ones where the teacher had none: the vision tower and adapter of a BlueLM made of a decoder."""
  create, shapes, shardings = like = stage.abstract_state(config, serialize.build(model_config), optax.identity(), mesh)
  assert all(t.shape == shapes.trainable[p].shape for p, t in tensors.items())
  new = shapes.trainable.keys() - tensors.keys()
  draw = lambda key: {p: x for p, x in create(key).trainable.items() if p in new}
  drawn = jax.jit(draw, out_shardings={p: shardings.trainable[p] for p in new})(jax.random.key(config.seed))
  return state_lib.TrainState(jnp.int32(config.steps), _placed(tensors, like) | drawn, {}, optax.EmptyState())


def _write_lineage(workdir, source, teacher, student, importance, kept) -> None:
  """pruning.json: both models, where the teacher lay (its run is in stage.json), what was kept and every score."""
  rounded = lambda x: np.vectorize(lambda v: float(f"{v:.5g}"), otypes=[float])(x).tolist()
  values = {
      "teacher": {"path": str(source.absolute()), "model": serialize.to_dict(teacher)},
      "student": {"model": serialize.to_dict(student)},
      "kept": {k: rounded(v) if k == "gains" else v.tolist() for k, v in kept._asdict().items()},
      "scores": {k: rounded(v) for k, v in importance._asdict().items()}}
  temporary = workdir / f"{LINEAGE}.tmp"
  temporary.write_text(json.dumps(values))
  temporary.rename(workdir / LINEAGE)
