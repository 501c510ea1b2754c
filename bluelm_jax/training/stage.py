"""One training stage, from its config to its last checkpoint."""

import functools
import pathlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from bluelm_jax import process
from bluelm_jax.data import chat as chat_lib
from bluelm_jax.data import loader
from bluelm_jax.data import pack
from bluelm_jax.data.batch import PackedBatch
from bluelm_jax.data.tokenizer import ASSET
from bluelm_jax.data.tokenizer import Tokenizer
from bluelm_jax.interop import load
from bluelm_jax.models import presets
from bluelm_jax.models import serialize
from bluelm_jax.models.config import BlueLMConfig
from bluelm_jax.sharding import rules
from bluelm_jax.training import optimizer as optimizer_lib
from bluelm_jax.training import state as state_lib
from bluelm_jax.training.checkpoints import Checkpoints
from bluelm_jax.training.metrics import Metrics


def run(config, workdir, stop_after: int | None = None) -> None:
  """Trains a stage; starts again where `workdir` left off.

  Args:
    config: of `training.defaults.stage`.
    workdir: gets model.json, tokenizer.json, checkpoints/, metrics.jsonl and tensorboard/.
    stop_after: leave after this step with a checkpoint, as a preempted run would; for tests.
  """
  workdir = pathlib.Path(workdir)
  model_config = _model_config(config)
  model = serialize.build(model_config)
  tokenizer = Tokenizer(config.tokenizer or ASSET)
  _check(config, model_config, tokenizer)
  if (workdir / serialize.FILE_NAME).exists() and serialize.load(workdir) != model_config:
    raise ValueError(f"{workdir} holds a checkpoint of another preset; choose another --workdir or the old preset")
  mesh = rules.make_mesh(config.mesh.to_dict())
  spec, chat = batch_shape(config, model_config, mesh, tokenizer)
  batches = loader.batches(config.data.sources, chat, spec, config.seed)
  tx = optimizer_lib.make_optimizer(config.optimizer, config.schedule, config.steps)
  process.cache_programs()
  begun = any(p.name.isdigit() for p in (workdir / "checkpoints").glob("*"))  # others are half-written
  state = _initial_state(config, model, tx, mesh, from_file=not begun)

  # All that can be refused has been; from here on the workdir is written to.
  workdir.mkdir(parents=True, exist_ok=True)
  _describe(workdir, model_config, tokenizer)
  checkpoints = Checkpoints(workdir, config.keep)
  if checkpoints.latest_step() is not None:
    state, data_state = checkpoints.restore(state)
    batches.set_state(data_state)
  _train(config, model, tx, mesh, state, batches, spec, checkpoints, workdir, min(config.steps, stop_after or config.steps))
  checkpoints.close()


def _train(config, model, tx, mesh, state, batches, spec, checkpoints, workdir, last):
  step_fn = jax.jit(state_lib.make_train_step(model, tx, config.objective), donate_argnums=0)
  put = functools.partial(put_batch, sharding=rules.batch_sharding(mesh))
  metrics = Metrics(workdir, config.name, config.steps)
  step, pending, first = int(state.step), [], True
  with jax.set_mesh(mesh):
    while step < last:
      state, values = step_fn(state, put(next(batches)))
      step += 1
      pending.append(values)
      if first:  # compiled now; leave it out of the rates
        jax.block_until_ready(state.step)
        metrics.start(step)
        first = False
      if step % config.log_every == 0 or step == last:
        _log(metrics, step, jax.device_get(pending), spec)
        pending = []
      if step % config.checkpoint_every == 0 or step == last:
        checkpoints.save(state, batches.get_state())
  metrics.close()


def _log(metrics, step, values, spec):
  """Averages loss over tokens, not over steps."""
  sums = {k: float(np.sum([v[k] for v in values])) for k in values[0]}
  loss = float(np.sum([v["loss"] * v["loss_tokens"] for v in values])) / max(sums["loss_tokens"], 1.0)
  if not np.isfinite(loss):
    raise ValueError(f"the loss is {loss} at step {step}; lower optimizer.learning_rate or raise schedule.warmup")
  scalars = {
      "loss": loss, "grad_norm": sums["grad_norm"] / len(values), "loss_tokens": sums["loss_tokens"],
      "image_token_share": sums["image_tokens"] / max(sums["tokens"], 1.0)}
  metrics.write(step, scalars, int(sums["tokens"]), spec.rows * spec.length * len(values))


def batch_shape(config, model_config, mesh, tokenizer) -> tuple[pack.PackSpec, chat_lib.ChatFormat]:
  """The shapes of a batch and the chat format of a model on a mesh."""
  groups = mesh.shape["data"] * mesh.shape["fsdp"]
  multimodal = isinstance(model_config, BlueLMConfig)
  anyres = model_config.anyres if multimodal else None
  tokens_per_tile = model_config.tokens_per_tile if multimodal else 1
  spec = pack.PackSpec(
      config.data.rows, config.data.length, groups, config.data.tile_slots, anyres.tile_size if anyres else 1, tokens_per_tile)
  return spec, chat_lib.ChatFormat(tokenizer, anyres, tokens_per_tile)


def put_batch(batch: PackedBatch, sharding) -> PackedBatch:
  """Host arrays to the mesh; every process holds the whole batch and gives its own part."""

  def put(x):
    return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])

  return PackedBatch(*map(put, batch))


def _model_config(config):
  if config.preset not in presets.PRESETS:
    raise ValueError(f"preset {config.preset!r} is unknown; use {', '.join(presets.PRESETS)}")
  return presets.PRESETS[config.preset]()


def _check(config, model_config, tokenizer):
  decoder = getattr(model_config, "decoder", model_config)
  if tokenizer.vocab_size > decoder.vocab_size:
    raise ValueError(f"tokenizer {tokenizer.path} has {tokenizer.vocab_size} tokens, preset {config.preset} {decoder.vocab_size}; use a matching tokenizer")
  if config.data.length > decoder.context:
    raise ValueError(f"data.length {config.data.length} exceeds the context of {config.preset}, {decoder.context}; lower it")
  if config.objective not in ("lm", "dense"):
    raise ValueError(f"objective {config.objective!r} is unknown; use lm or dense")
  if config.steps < 1 or config.log_every < 1 or config.checkpoint_every < 1:
    raise ValueError("steps, log_every and checkpoint_every must be at least 1")


def _describe(workdir, model_config, tokenizer):
  """model.json and tokenizer.json, once."""
  if (workdir / serialize.FILE_NAME).exists():
    return
  (workdir / "tokenizer.json").write_bytes(tokenizer.path.read_bytes())
  serialize.save(model_config, workdir)


def _initial_state(config, model, tx, mesh, from_file: bool) -> state_lib.TrainState:
  """Random or loaded parameters, placed on the mesh."""
  method = "init_all" if isinstance(model.config, BlueLMConfig) else None
  init = functools.partial(model.init, method=method)
  tokens = jnp.zeros((1, 8), jnp.int32)
  boxed = jax.eval_shape(init, jax.random.key(0), tokens)["params"]
  shardings = rules.param_shardings(mesh, boxed)

  def create(key, params=None):
    params = nn.meta.unbox(init(key, tokens)["params"]) if params is None else params
    trainable, frozen = optimizer_lib.split_trainable(params, config.trainable)
    return state_lib.TrainState(jnp.int32(0), trainable, frozen, tx.init(trainable))

  key = jax.random.key(config.seed)
  shapes = jax.eval_shape(create, key)
  flat = optimizer_lib.paths(shardings)
  out = _state_shardings(shapes, flat, rules.replicated(mesh))
  if config.init_from and from_file:
    params = load.load_params(config.init_from, model.config)
    return jax.jit(create, out_shardings=out)(key, jax.device_put(params, shardings))
  return jax.jit(create, out_shardings=out)(key)


def _state_shardings(shapes, flat: dict, replicated):
  """Optimizer moments lie as their parameters do; scalars are replicated."""

  def place(path, leaf):
    for part in reversed(path):
      sharding = flat.get(getattr(part, "key", None))
      if sharding is not None and len(sharding.spec) <= leaf.ndim:
        return sharding
    return replicated

  return jax.tree_util.tree_map_with_path(place, shapes)
