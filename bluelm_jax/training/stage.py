"""One training stage, from its config to its last checkpoint."""

import dataclasses
import functools
import pathlib
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp

from bluelm_jax import process
from bluelm_jax import supervise
from bluelm_jax.data import chat as chat_lib
from bluelm_jax.data import loader
from bluelm_jax.data import pack
from bluelm_jax.data.batch import PackedBatch
from bluelm_jax.data.tokenizer import ASSET
from bluelm_jax.data.tokenizer import FILES as TOKENIZER_FILES
from bluelm_jax.data.tokenizer import Tokenizer
from bluelm_jax.interop import compose
from bluelm_jax.interop import hf_config
from bluelm_jax.interop import load
from bluelm_jax.models import config as config_lib
from bluelm_jax.models import presets
from bluelm_jax.models import serialize
from bluelm_jax.models.config import BlueLMConfig
from bluelm_jax.sharding import chips
from bluelm_jax.sharding import rules
from bluelm_jax.training import accumulate
from bluelm_jax.training import checks
from bluelm_jax.training import goodput
from bluelm_jax.training import loop
from bluelm_jax.training import online
from bluelm_jax.training import optimizer as optimizer_lib
from bluelm_jax.training import record
from bluelm_jax.training import spikes
from bluelm_jax.training import state as state_lib
from bluelm_jax.training import store
from bluelm_jax.training import teacher as teacher_lib
from bluelm_jax.training import utilization
from bluelm_jax.training import watch
from bluelm_jax.training.checkpoints import Checkpoints


def run(config, workdir, stop_after: int | None = None, life: supervise.Life | None = None) -> None:
  """Runs a stage; starts again where `workdir` left off.

  Args:
    config: of `training.defaults.stage`.
    workdir: gets stage.json, model.json, tokenizer.json, checkpoints/, metrics.jsonl, goodput.jsonl and tensorboard/, and quarantine.jsonl
      if there are bad records, spikes.jsonl if there are bad steps, evaluation.jsonl, export/ and profiles/ if the config asks, damaged/ if a
      checkpoint was.
    stop_after: leave after this step with a checkpoint; for tests.
    life: of this process, where a door began it; None counts its time from now.

  Raises:
    ValueError: a mistake of the user, or a full disk.
    supervise.Preempted: SIGTERM came; the step that was under way is saved.
  """
  life = life or supervise.Life()
  workdir = pathlib.Path(workdir)
  clock = goodput.Clock(workdir, life)
  checks.workdir(workdir)
  checks.complete(config)
  if config.objective == "prune":
    from bluelm_jax.training import pruning  # here, as it builds on this module

    return pruning.run(config, workdir, life)
  if config.objective == "teach":
    from bluelm_jax.training import teaching

    return teaching.run(config, workdir, life)
  before = record.latest_step(workdir)
  source = None if config.preset else workdir if before is not None else _source(config)
  model_config = described_model(config, source)
  model = serialize.build(model_config)
  tokenizer = own_tokenizer(config, source)
  checks.values(config, model_config, tokenizer)
  if config.init_from and before is None:
    checks.positions(config, model_config, load.description(config.init_from))
  if before is not None and not config_lib.same_weights(serialize.load(workdir), model_config):
    raise ValueError(f"{workdir} holds a checkpoint of another preset; choose another --workdir or the old preset")
  record.check(workdir, config)
  if before is not None and before >= config.steps and not online.missing(config, workdir, before):
    print(f"{config.name}: already at step {before} of {config.steps}", file=sys.stderr)
    loop.export(config, workdir, before)
    return
  if config.export_every and jax.process_count() > 1:
    raise ValueError("export_every reads the checkpoint in one process; set it to 0 and export with python -m bluelm_jax.convert")
  teacher_lib.check(config, model_config, tokenizer)
  mesh = rules.make_mesh(config.mesh.to_dict())
  spec, chat = batch_shape(config, model_config, mesh, tokenizer)
  first = jax.process_index() == 0  # of the processes, which all read all examples; it alone writes
  quarantine = workdir / "quarantine.jsonl" if first else None
  batches = loader.batches(config.data.sources, chat, spec, config.seed, config.data.workers, quarantine, config.data.max_bad_share)
  batches = store.joined(config, batches, spec)
  try_batch(batches, spec)
  held_out = None
  if config.evaluate.every:
    held_out = loader.batches(config.evaluate.sources, chat, spec, online.SEED, quarantine=quarantine, max_bad_share=config.data.max_bad_share)
    try_batch(held_out, spec)
  tx = optimizer_lib.make_optimizer(config.optimizer, config.schedule, config.steps)
  process.cache_programs()
  state = _initial_state(config, model, tx, mesh, from_file=before is None)
  teacher = teacher_lib.params(config, model_config, mesh)

  # All that can be refused has been; from here on the workdir is written to.
  workdir.mkdir(parents=True, exist_ok=True)
  if first:
    record.write(workdir, config)
  if first and before is None:
    describe(workdir, model_config, tokenizer, compose.companions(source) if source else {})
  checkpoints = Checkpoints(workdir, config.keep, config.keep_every)
  clock.mark("start")
  if checkpoints.latest_step() is not None:
    state, data_state = checkpoints.restore(state)
    batches.set_state(data_state)
  clock.mark("restore")
  last = min(config.steps, stop_after or config.steps)
  shardings = jax.tree.map(lambda x: x.sharding, state)
  step_fn = jit_step(config, model, tx, shardings)
  several = None
  if accumulate.most(config.data.accumulate) > 1:
    several = accumulate.programs(config, model, tx, shardings, gradient_shardings(config, model, tx, mesh))
  put = functools.partial(put_batch, sharding=rules.batch_sharding(mesh))
  evaluation = online.Evaluation(config, workdir, online.jit_losses(config, model, mesh), held_out, put)
  meter = utilization.Meter(config, model_config, mesh)
  try:
    with jax.set_mesh(mesh):
      loop.train(config, step_fn, several, state, teacher, batches, put, spec, checkpoints, evaluation, meter, workdir, last, life, clock)
  finally:
    life.beat(0)
    checkpoints.close()
  clock.mark("checkpoint")
  clock.write(last)
  if first:
    print(f"{config.name}: {goodput.line([workdir])}", file=sys.stderr)
  if last == config.steps:
    loop.export(config, workdir, last)


def own_tokenizer(config, source) -> Tokenizer:
  """The config's tokenizer, or else that of the checkpoint whose model is trained, or the package's own.

  Args:
    source: where that checkpoint lies; None where the model is a preset.
  """
  shipped, end_ids = (source / "tokenizer.json", hf_config.end_ids(source)) if source else (ASSET, ())
  return Tokenizer(config.tokenizer or shipped, end_ids)


def batch_shape(config, model_config, mesh, tokenizer) -> tuple[pack.PackSpec, chat_lib.ChatFormat]:
  """The shapes of a batch and the chat format of a model on a mesh."""
  decoder, shards = getattr(model_config, "decoder", model_config), rules.ways(mesh, "vocab")
  if decoder.vocab_size // shards % config.loss_chunks:
    raise ValueError(f"loss_chunks {config.loss_chunks} do not divide a vocabulary of {decoder.vocab_size} on {shards} tensor ranks; use a divisor of {decoder.vocab_size // shards}")
  groups = rules.ways(mesh, "batch")
  sharers = rules.ways(mesh, "tiles") // groups
  if config.data.tile_slots % sharers:
    raise ValueError(f"data.tile_slots {config.data.tile_slots} do not divide over the {sharers} context and tensor ranks of a group; use a multiple")
  multimodal = isinstance(model_config, BlueLMConfig)
  anyres = model_config.anyres if multimodal else None
  tokens_per_tile = model_config.tokens_per_tile if multimodal else 1
  spec = pack.PackSpec(
      config.data.rows, config.data.length, groups, config.data.tile_slots, anyres.tile_size if anyres else 1, tokens_per_tile,
      config.data.overlong)
  return spec, chat_lib.ChatFormat(tokenizer, anyres, tokens_per_tile)


def try_batch(batches, spec) -> None:
  """Draws a batch and winds back: data that cannot be read or packed are refused before anything is written."""
  start = batches.get_state()
  try:
    if next(batches, None) is None:
      raise ValueError("the data hold no example that fits a row; raise data.length or data.tile_slots, or look at the sources")
  except MemoryError as e:
    raise ValueError(f"a batch of {spec.rows} rows of {spec.length} tokens does not fit the memory; lower data.rows, data.length or data.tile_slots") from e
  batches.set_state(start)


def put_batch(batch: PackedBatch, sharding) -> PackedBatch:
  """Host arrays to the mesh; every process holds the whole batch and gives its own part."""

  def put(x):
    return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])

  return jax.tree.map(put, batch)


def described_model(config, source=None):
  """The model of a stage, computed as `config.execution` says: its preset, or without one that of its checkpoint.

  Args:
    source: where that checkpoint lies; None is `init_from`.
  """
  checks.execution(config)
  if not config.preset:
    model_config = _described_in(source or _source(config))
  elif config.preset in presets.PRESETS:
    model_config = presets.PRESETS[config.preset]()
  else:
    raise ValueError(f"preset {config.preset!r} is unknown; use {', '.join(presets.PRESETS)}, or '' for the model of init_from")
  if isinstance(model_config, config_lib.VisionConfig):
    raise ValueError(f"{f'preset {config.preset!r}' if config.preset else config.init_from} is a vision tower and predicts no tokens; use a language model or a BlueLM")
  if config.yarn != 1:
    model_config = config_lib.stretched(model_config, config.yarn)
  return config_lib.with_execution(model_config, **{k: v for k, v in config.execution.items() if v})


def _source(config) -> pathlib.Path:
  """The checkpoint whose model and tokenizer a stage without a preset takes."""
  if not config.init_from:
    raise ValueError("preset and init_from are both empty; name a preset, or the checkpoint whose model is to be trained")
  return load.checkpoint_directory(config.init_from)


def _described_in(directory: pathlib.Path):
  """The model of a checkpoint, with parameters in float32 for the optimizer; activations stay as they are."""
  model_config = load.description(directory)
  if isinstance(model_config, BlueLMConfig):
    parts = {n: dataclasses.replace(getattr(model_config, n), param_dtype="float32") for n in ("vision", "decoder")}
    return dataclasses.replace(model_config, **parts)
  return dataclasses.replace(model_config, param_dtype="float32")


def describe(workdir, model_config, tokenizer, companions) -> None:
  """model.json, the tokenizer with its chat template, and what else stood beside the weights."""
  for name, data in {**{n: d for n, d in companions.items() if n not in TOKENIZER_FILES}, **tokenizer.files()}.items():
    (workdir / name).write_bytes(data)
  serialize.save(model_config, workdir)


def jit_step(config, model, tx, shardings: state_lib.TrainState):
  """The stage's train step, compiled at its first call; the state stays where `shardings` say."""
  step = state_lib.make_train_step(
      model, tx, len(config.data.sources), config.objective, config.layout, config.loss_chunks, teacher_lib.distillation(config, model.config),
      spikes.Rule(**config.spikes), watch.watcher(config, shardings.trainable))
  kind = shardings.step.mesh.devices.flat[0].device_kind
  return jax.jit(step, donate_argnums=0, out_shardings=(shardings, None), compiler_options=chips.compiler_options(kind))


def gradient_shardings(config, model, tx, mesh) -> dict:
  """Where gradients lie, flat by path: in pieces, as the moments do, also where weights are whole."""
  in_pieces = config.copy_and_resolve_references()
  in_pieces.zero = 3
  return abstract_state(in_pieces, model, tx, mesh)[2].trainable


def abstract_state(config, model, tx, mesh):
  """(create(key, params=None) -> TrainState, its shapes, its shardings); nothing is computed."""
  method = "init_all" if isinstance(model.config, BlueLMConfig) else None
  init = functools.partial(model.init, method=method)
  tokens = jnp.zeros((1, 8), jnp.int32)
  boxed = load.abstract_params(model.config)
  placed = optimizer_lib.paths(rules.param_shardings(mesh, boxed))

  def create(key, params=None):
    if params is None:
      params = nn.meta.unbox(init(key, tokens)["params"])
    else:  # a file may hold another precision
      params = jax.tree.map(lambda x, like: x.astype(like.dtype), params, nn.meta.unbox(boxed))
    trainable, frozen = optimizer_lib.split_trainable(params, config.trainable)
    if config.optimizer.decayed:
      optimizer_lib.check_patterns("optimizer.decayed", config.optimizer.decayed, {**trainable, **frozen})
    if config.optimizer.lr_factors:
      optimizer_lib.check_patterns("optimizer.lr_factors", [f["path"] for f in config.optimizer.lr_factors.values()], {**trainable, **frozen})
    watch.check_groups(config, {**trainable, **frozen})
    return state_lib.TrainState(jnp.int32(0), trainable, frozen, tx.init(trainable), spikes.start())

  shapes = jax.eval_shape(create, jax.random.key(config.seed), nn.meta.unbox(boxed))
  shardings = _state_shardings(shapes, placed, rules.replicated(mesh))
  if config.zero == 2:  # gradients and moments in pieces, weights whole
    whole = optimizer_lib.paths(rules.param_shardings(mesh, boxed, pieces=False))
    parts = ({p: whole[p] for p in part} for part in (shardings.trainable, shardings.frozen))
    shardings = shardings._replace(trainable=next(parts), frozen=next(parts))
  return create, shapes, shardings


def _initial_state(config, model, tx, mesh, from_file: bool) -> state_lib.TrainState:
  """Random or loaded parameters, placed on the mesh."""
  create, _, shardings = abstract_state(config, model, tx, mesh)
  make = functools.partial(jax.jit(create, out_shardings=shardings), jax.random.key(config.seed))
  if not from_file or not config.init_from:
    return make()
  params = load.load_params(config.init_from, model.config)
  if config.init_vision:
    params["vision"] = load.load_params(config.init_vision, model.config.vision)
  return make(jax.device_put(params, optimizer_lib.merge(shardings.trainable, shardings.frozen)))


def _state_shardings(shapes, flat: dict, replicated):
  """Optimizer moments lie as their parameters do; scalars are replicated."""

  def place(path, leaf):
    for part in reversed(path):
      sharding = flat.get(getattr(part, "key", None))
      if sharding is not None and len(sharding.spec) <= leaf.ndim:
        return sharding
    return replicated

  return jax.tree_util.tree_map_with_path(place, shapes)
