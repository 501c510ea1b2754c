"""Any checkpoint to (model, params): HuggingFace directories and our own."""

import contextlib
import dataclasses
import functools
import logging
import math
import pathlib
import re
import shutil
import sys
from typing import Mapping
import uuid

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from bluelm_jax.interop import hf_config
from bluelm_jax.interop import manifest
from bluelm_jax.interop import mapping
from bluelm_jax.interop import safetensors_io
from bluelm_jax.models import serialize
from bluelm_jax.models.config import BlueLMConfig
from bluelm_jax.models.config import DecoderConfig
from bluelm_jax.models.config import VisionConfig

_PARAMS = "params"
_SMALL = 2**26  # bytes of a model


def load_pretrained(path):
  """Loads a checkpoint.

  Args:
    path: a HuggingFace directory (LlamaForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM, SiglipVisionModel),
      a directory written by `convert`, or a training or recipe workdir (its newest checkpoint).

  Returns:
    (model, params): a Flax module and its parameters, in the dtype of the file. For language models
    `model.apply({"params": params}, tokens, positions=..., segment_ids=...)` gives logits [B, S, V].

  Raises:
    ValueError: not a checkpoint, or a damaged or mismatched one.
  """
  config, tensors = open_checkpoint(path)
  params = flax.traverse_util.unflatten_dict({p: t.read() for p, t in tensors.items()}, sep="/")
  return serialize.build(config), params


def load_params(path, config):
  """The parameters at `path`, which must have the shapes of `config`."""
  _, tensors = open_checkpoint(path)
  _compare(param_shapes(config), tensors, path)
  return flax.traverse_util.unflatten_dict({p: t.read() for p, t in tensors.items()}, sep="/")


def open_checkpoint(path) -> tuple[object, dict[str, mapping.Tensor]]:
  """(configuration, our path -> Tensor): names and shapes are checked, no weights read yet."""
  path = checkpoint_directory(path)
  if (path / "config.json").is_file():
    config, tensors = _huggingface(path)
  else:
    config = serialize.load(path)
    tensors = _safetensors(path) if any(path.glob("*.safetensors")) else _orbax(path)
    _compare(param_shapes(config), tensors, path)
  return _with_dtype(config, tensors), tensors


def checkpoint_directory(path) -> pathlib.Path:
  """Where model.json or config.json lies; a recipe's workdir means its last stage that has a checkpoint."""
  path = pathlib.Path(path)
  if not path.is_dir():
    raise ValueError(f"no checkpoint directory at {path}; check the path")
  if (path / serialize.FILE_NAME).is_file() or (path / "config.json").is_file():
    return path
  stages = [p.parent for p in path.glob(f"*/{serialize.FILE_NAME}") if _newest(p.parent)]
  if not stages:
    raise ValueError(f"{path} has neither {serialize.FILE_NAME} nor config.json; give a HuggingFace directory or one of ours")
  return max(stages, key=lambda p: (int(re.match(r"\d*", p.name)[0] or 0), p.name))  # "10-sft" comes after "9-pretrain"


def _newest(directory: pathlib.Path) -> pathlib.Path | None:
  """The orbax directory of the parameters."""
  steps = [p for p in (directory / "checkpoints").glob("[0-9]*") if p.name.isdigit() and (p / _PARAMS).is_dir()]
  return max(steps, key=lambda p: int(p.name)) / _PARAMS if steps else None


def description(path):
  """The configuration of a checkpoint's model as its model.json has it; of a HuggingFace directory, in its file's precision."""
  directory = checkpoint_directory(path)
  return open_checkpoint(directory)[0] if (directory / "config.json").is_file() else serialize.load(directory)


def abstract_params(config):
  """Shapes and dtypes of every parameter of a model, in boxes with their logical axes; to be read only."""
  return _abstract_params(config, jax.config.jax_enable_x64)


@functools.lru_cache  # a trace of the whole model, which many ask for
def _abstract_params(config, x64: bool):
  del x64  # of which dtypes depend
  model = serialize.build(config)
  if isinstance(config, VisionConfig):
    example = jax.ShapeDtypeStruct((1, config.image_size, config.image_size, 3), jnp.float32)
    init = model.init
  else:
    example = jax.ShapeDtypeStruct((1, 8), jnp.int32)
    init = functools.partial(model.init, method="init_all") if isinstance(config, BlueLMConfig) else model.init
  shapes = jax.eval_shape(init, jax.random.key(0), example)["params"]
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), shapes)  # of no mesh that may be set just now


def param_shapes(config) -> dict[str, tuple[int, ...]]:
  """Our path -> shape of every parameter of a model."""
  return {p: v.shape for p, v in _flat(nn.meta.unbox(abstract_params(config))).items()}


def _flat(params) -> dict:
  return flax.traverse_util.flatten_dict(params, sep="/")


def _compare(expected: dict[str, tuple], tensors: dict[str, mapping.Tensor], where):
  for name in sorted(set(expected) | set(tensors)):
    found = tensors[name].shape if name in tensors else None
    if expected.get(name) != found:
      raise ValueError(
          f"{where} is a checkpoint of another preset: tensor {name} has shape {found}, expected {expected.get(name)}; "
          "use the preset it was made with")


def _orbax(directory: pathlib.Path) -> dict[str, mapping.Tensor]:
  """The newest training checkpoint; one parameter is restored at a time, or all of a small model, which takes no longer than one."""
  newest = _newest(directory)
  if newest is None:
    raise ValueError(f"{directory} has no finished checkpoint; train or convert again")
  if problem := manifest.problem(newest.parent, _PARAMS):
    raise ValueError(f"{newest.parent} is damaged ({problem}); remove it, and the checkpoint before it is used")
  checkpointer, newest = ocp.PyTreeCheckpointer(), newest.absolute()
  with reading(newest):
    stored = _flat(checkpointer.metadata(newest).item_metadata.tree)

  small = sum(math.prod(m.shape) * np.dtype(m.dtype).itemsize for m in stored.values()) <= _SMALL

  @functools.lru_cache(maxsize=1)  # the layers of a stacked parameter are asked for in a row
  def restore(only):
    item = flax.traverse_util.unflatten_dict({p: 0 if only in (p, None) else ocp.PLACEHOLDER for p in stored}, sep="/")
    plain = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), item)
    with reading(f"{newest}: parameter {only}" if only else newest):
      return _flat(checkpointer.restore(newest, args=ocp.args.PyTreeRestore(item=item, restore_args=plain)))

  def tensor(path, meta):
    whole = lambda: restore(None if small else path)[path]
    return mapping.Tensor(tuple(meta.shape), np.dtype(meta.dtype), lambda i=None: whole() if i is None else whole()[i])

  return {p: tensor(p, m) for p, m in stored.items()}


@contextlib.contextmanager
def reading(what):
  """Makes one ValueError of whatever orbax raises on a damaged checkpoint."""
  hush()
  try:
    yield
    return
  except Exception as e:  # of many kinds
    while e.__cause__:
      e = e.__cause__
    text = str(e.args[0]) if isinstance(e, KeyError) else str(e)
  raise ValueError(f"{what} is damaged ({' '.join(text.split())[:200]}); use an older checkpoint")


@functools.cache
def hush() -> None:
  """Drops what orbax prints of errors that it raises too, and its abandoned tasks after them, at times of their own choosing."""
  logging.getLogger("absl").addFilter(lambda record: not (record.exc_info and "orbax" in record.pathname))
  logging.getLogger("asyncio").addFilter(lambda record: "orbax" not in record.getMessage())
  show = sys.unraisablehook

  def hook(found):
    if "orbax" not in str(getattr(found.object, "cr_code", "")) and str(found.exc_value) != "Event loop is closed":
      show(found)

  sys.unraisablehook = hook


def _safetensors(directory: pathlib.Path) -> dict[str, mapping.Tensor]:
  """What `save` wrote: tensors under our own paths."""
  reader = safetensors_io.Reader(directory)
  for name, (_, _, shape, _, _) in reader.tensors.items():
    reader.check(name, shape)
  return {p: mapping.Tensor(shape, dtype, functools.partial(reader.read, p)) for p, (_, dtype, shape, _, _) in reader.tensors.items()}


def _huggingface(directory: pathlib.Path):
  config = hf_config.load(directory)
  reader = safetensors_io.Reader(directory)
  if isinstance(config, VisionConfig):
    table, prefixes = mapping.vision_table(), ("vision_model.", "vision_tower.vision_model.", "")
  else:
    table, prefixes = mapping.decoder_table(config), ("model.", "")
  return config, mapping.ours(reader, table, param_shapes(config), prefixes)


def _with_dtype(config, tensors):
  """Activations and parameters of each part in the precision of its own tensors."""
  if isinstance(config, BlueLMConfig):
    parts = {n: {p: t for p, t in tensors.items() if p.startswith(f"{n}/")} for n in ("vision", "decoder")}
    return dataclasses.replace(config, **{n: _with_dtype(getattr(config, n), part) for n, part in parts.items()})
  dtypes = {str(t.dtype) for t in tensors.values()}
  dtype = "float32" if "float32" in dtypes else sorted(dtypes)[0]
  return dataclasses.replace(config, dtype=dtype, param_dtype=dtype)


def save(directory, config, tensors: dict[str, mapping.Tensor], companions: Mapping[str, bytes] = {}) -> None:
  """Writes model.json, safetensors under our own paths, and companion files by name (e.g. tokenizer.json); all or nothing."""
  with fresh_directory(directory) as temporary:
    serialize.save(config, temporary)
    safetensors_io.write(temporary, ((p, t.shape, t.dtype, t.read) for p, t in tensors.items()))
    for name, data in companions.items():
      (temporary / name).write_bytes(data)


@contextlib.contextmanager
def fresh_directory(path):
  """A temporary directory that becomes `path` if the block succeeds; nothing is left if it fails."""
  path = pathlib.Path(path).absolute()
  if path.exists():
    raise ValueError(f"{path} exists; choose another output or remove it")
  path.parent.mkdir(parents=True, exist_ok=True)
  temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
  try:
    temporary.mkdir()
    yield temporary
    temporary.rename(path)
  finally:
    shutil.rmtree(temporary, ignore_errors=True)
