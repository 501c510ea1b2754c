"""What a stage refuses before it reads weights or writes anything."""

import math
import pathlib

from ml_collections import ConfigDict

from bluelm_jax.data import loader
from bluelm_jax.kernels.attention import api
from bluelm_jax.kernels.attention import layouts
from bluelm_jax.kernels.attention import ring
from bluelm_jax.sharding import remat
from bluelm_jax.training import accumulate
from bluelm_jax.training import defaults

_GREATEST = 1e38  # of float32
_ROUNDED = 1 - 2**-8  # bfloat16 has 8 bits: what shrinks by less than half of the last stays what it was
_RULES = (
    ("at least 1 and below 2**31", lambda v: 1 <= v < 2**31,
     ("steps", "log_every", "checkpoint_every", "keep", "loss_chunks", "distill.top_k", "spikes.patience", "evaluate.batches")),
    ("at least 0 and below 2**62", lambda v: 0 <= v < 2**62,
     ("seed", "schedule.warmup", "schedule.horizon", "schedule.offset", "data.workers", "keep_every", "export_every", "watch.every", "spikes.rollbacks",
      "evaluate.every")),
    ("positive", lambda v: 0 < v < _GREATEST,
     ("optimizer.learning_rate", "optimizer.muon_learning_rate", "optimizer.clip_norm", "optimizer.eps", "distill.temperature")),
    ("at least 0", lambda v: 0 <= v < _GREATEST, ("optimizer.weight_decay", "schedule.final")),
    ("from 1 to 1024", lambda v: 1 <= v <= 1024, ("yarn",)),
    ("at least 0 and below 1", lambda v: 0 <= v < 1, ("optimizer.b1", "optimizer.b2")),
    ("from 0 to 1", lambda v: 0 <= v <= 1, ("schedule.decay_share", "data.max_bad_share", "distill.share")),
)
_EXECUTION = {"attention": api.IMPLEMENTATIONS, "context_parallel": ring.STRATEGIES, "remat": remat.POLICIES}
_OBJECTIVES = ("lm", "dense", "distill", "prune", "teach")
_OPEN = ("sources", "lr_factors", "groups")  # parts of a config whose keys a user chooses


def workdir(path) -> None:
  """Raises ValueError where no directory can be."""
  there = next(p for p in (pathlib.Path(path).absolute(), *pathlib.Path(path).absolute().parents) if p.exists())
  if not there.is_dir():
    raise ValueError(f"{there} is a file; choose another --workdir")


def complete(config) -> None:
  """Raises ValueError on a config that is no stage's, or lacks one of its keys."""
  if isinstance(config, dict) or "preset" not in config:  # a plain dict lacks what a ConfigDict has
    raise ValueError("this config is no stage; run a recipe with python -m bluelm_jax.recipe")
  _complete(config, defaults.stage())


def positions(config, model_config, start) -> None:
  """Raises ValueError where a stage would undo the YaRN of the model it starts from.

  Args:
    start: that model's configuration.
  """
  before = getattr(getattr(start, "decoder", start), "rope_scaling", None)
  after = getattr(model_config, "decoder", model_config).rope_scaling
  if before is None or before.kind != "yarn":
    return
  if after is None or after.original_context != before.original_context or after.factor < before.factor:
    raise ValueError(f"init_from {config.init_from} was stretched {before.factor:g} times by YaRN, this stage's model {after.factor if after else 1:g} times; set yarn = {before.factor:g}, or more")


def _complete(config, like, prefix=""):
  for key, value in like.items():
    if key not in config or isinstance(value, ConfigDict) and not isinstance(config[key], ConfigDict):
      raise ValueError(f"the config has no {prefix}{key}; begin it with defaults.stage()")
    if isinstance(value, ConfigDict) and key not in _OPEN:
      _complete(config[key], value, f"{prefix}{key}.")


def execution(config) -> None:
  """Raises ValueError on an unknown name in `config.execution`."""
  for key, names in _EXECUTION.items():
    if config.execution[key] and config.execution[key] not in names:
      raise ValueError(f"execution.{key} {config.execution[key]!r} is unknown; use {', '.join(names)}")


def trains(config) -> None:
  """Raises ValueError on a stage without a train step."""
  for objective, does in (("prune", "prunes"), ("teach", "stores a teacher's words")):
    if config.objective == objective:
      raise ValueError(f"the stage {config.name} {does} and has no train step; name a stage that trains")


def values(config, model_config, tokenizer) -> None:
  """Raises ValueError on values that are out of range or do not fit together."""
  decoder = getattr(model_config, "decoder", model_config)
  model = f"preset {config.preset}" if config.preset else f"the model of {config.init_from}"
  if not config.name:
    raise ValueError("name is empty; call the stage something")
  if tokenizer.vocab_size > decoder.vocab_size:
    raise ValueError(f"tokenizer {tokenizer.path} has {tokenizer.vocab_size} tokens, {model} {decoder.vocab_size}; use a matching tokenizer")
  if not config.tokenizer and config.preset and decoder.vocab_size > 2 * tokenizer.vocab_size:
    raise ValueError(f"tokenizer {tokenizer.path} has {tokenizer.vocab_size} tokens, {model} {decoder.vocab_size}, most of which would stand for nothing; set tokenizer to a tokenizer.json of about as many")
  if config.init_vision and not (config.init_from and decoder is not model_config):
    raise ValueError(f"init_vision is set, but {model} has no vision tower, or init_from is empty; compose a BlueLM with python -m bluelm_jax.convert")
  if config.data.length > decoder.context:
    raise ValueError(f"data.length {config.data.length} exceeds the context of {model}, {decoder.context}; lower it")
  if config.layout not in layouts.LAYOUTS:
    raise ValueError(f"layout {config.layout!r} is unknown; use {', '.join(layouts.LAYOUTS)}")
  if config.objective not in _OBJECTIVES:
    raise ValueError(f"objective {config.objective!r} is unknown; use {', '.join(_OBJECTIVES)}")
  if config.zero not in (2, 3):
    raise ValueError(f"zero {config.zero} is not offered; use 3 (weights in pieces too) or 2 (weights whole)")
  if config.data.rows < 1 or config.data.length < 1 or config.data.tile_slots < 0:
    raise ValueError(f"a batch of {config.data.rows} rows of {config.data.length} tokens and {config.data.tile_slots} tiles is none; raise data.rows, data.length or data.tile_slots")
  for rule, holds, keys in _RULES:
    for key in keys:
      part, _, leaf = key.rpartition(".")
      value = (config[part] if part else config)[leaf]
      if not holds(value):
        raise ValueError(f"{key} {value} must be {rule}")
  if config.optimizer.moment_dtype not in ("", "bfloat16", "float32"):
    raise ValueError(f"optimizer.moment_dtype {config.optimizer.moment_dtype!r} is unknown; use bfloat16, float32, or '' for that of the parameters")
  if config.optimizer.moment_dtype == "bfloat16" and max(config.optimizer.b1, config.optimizer.b2) > _ROUNDED:
    raise ValueError(f"with moments in bfloat16, optimizer.b1 and b2 above {_ROUNDED} round every decay of a moment away; lower them or use float32")
  if config.schedule.kind == "multistep" and not config.schedule.final:
    raise ValueError("schedule.final is 0, and multistep would learn nothing from 80 % of the steps on; raise it")
  if config.schedule.continues and not config.schedule.offset:
    raise ValueError("schedule.continues is set, but only a recipe counts the steps before; set schedule.offset instead")
  accumulate.check(config.data.accumulate)
  for name, f in config.optimizer.lr_factors.items():
    if not isinstance(f, ConfigDict) or set(f) - {"layer_decay"} != {"path", "factor"} or not isinstance(f.factor, (int, float)) or not 0 <= f.factor < math.inf:
      raise ValueError(f"optimizer.lr_factors.{name} must have a path and a factor of at least 0, and nothing else but a layer_decay")
    if not isinstance(f.get("layer_decay", 1.0), (int, float)) or not 0 < f.get("layer_decay", 1.0) <= 1:
      raise ValueError(f"optimizer.lr_factors.{name}.layer_decay {f.layer_decay!r} must be above 0 and at most 1")
  if config.spikes.factor and not 1 < config.spikes.factor < math.inf:
    raise ValueError(f"spikes.factor {config.spikes.factor} must be over 1, or 0 to leave out no gradient for its size")
  for name, patterns in config.watch.groups.items():
    if "/" in name or not isinstance(patterns, (str, list, tuple)):
      raise ValueError(f"watch.groups.{name} = {patterns!r} must be a regular expression or several, and its name without a slash")
  loader.check(config.data.sources, config.objective)
  if config.evaluate.every and not config.evaluate.sources:
    raise ValueError("evaluate.every is set, but there are no evaluate.sources; name held-out shards, or set it to 0")
  if config.evaluate.sources:
    loader.check(config.evaluate.sources, config.objective)
