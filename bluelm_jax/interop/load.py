"""Any checkpoint to (model, params): HuggingFace directories and our own."""

import dataclasses
import functools
import pathlib
import shutil
import uuid

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from bluelm_jax.interop import hf_config
from bluelm_jax.interop import mapping
from bluelm_jax.interop import safetensors_io
from bluelm_jax.models import serialize
from bluelm_jax.models.config import BlueLMConfig
from bluelm_jax.models.config import DecoderConfig
from bluelm_jax.models.config import VisionConfig

_PARAMS = "params"


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
  path = checkpoint_directory(path)
  if (path / serialize.FILE_NAME).is_file():
    config = serialize.load(path)
    params = _restore(path, config)
  else:
    config, params = _read_hf(path)
  config = _with_dtype(config, params)
  return serialize.build(config), params


def load_params(path, config):
  """The parameters at `path`, which must have the shapes of `config`."""
  model, params = load_pretrained(path)
  _compare(param_shapes(config), {p: v.shape for p, v in _flat(params).items()}, path)
  del model
  return params


def checkpoint_directory(path) -> pathlib.Path:
  """Where model.json or config.json lies; a recipe's workdir means its last stage that has a checkpoint."""
  path = pathlib.Path(path)
  if not path.is_dir():
    raise ValueError(f"no checkpoint directory at {path}; check the path")
  if (path / serialize.FILE_NAME).is_file() or (path / "config.json").is_file():
    return path
  stages = sorted(p.parent for p in path.glob(f"*/{serialize.FILE_NAME}") if _newest(p.parent))
  if not stages:
    raise ValueError(f"{path} has neither {serialize.FILE_NAME} nor config.json; give a HuggingFace directory or one of ours")
  return stages[-1]


def _newest(directory: pathlib.Path) -> pathlib.Path | None:
  """The orbax directory of the parameters."""
  if (directory / _PARAMS).is_dir():
    return directory / _PARAMS
  steps = [p for p in (directory / "checkpoints").glob("[0-9]*") if p.name.isdigit() and (p / _PARAMS).is_dir()]
  return max(steps, key=lambda p: int(p.name)) / _PARAMS if steps else None


def param_shapes(config) -> dict[str, tuple[int, ...]]:
  """Our path -> shape of every parameter of a model."""
  model = serialize.build(config)
  if isinstance(config, VisionConfig):
    example = jax.ShapeDtypeStruct((1, config.image_size, config.image_size, 3), jnp.float32)
    init = model.init
  else:
    example = jax.ShapeDtypeStruct((1, 8), jnp.int32)
    init = functools.partial(model.init, method="init_all") if isinstance(config, BlueLMConfig) else model.init
  boxed = jax.eval_shape(init, jax.random.key(0), example)["params"]
  return {p: v.shape for p, v in _flat(nn.meta.unbox(boxed)).items()}


def _flat(params) -> dict:
  return flax.traverse_util.flatten_dict(params, sep="/")


def _compare(expected: dict, found: dict, where):
  for name in sorted(set(expected) | set(found)):
    if expected.get(name) != found.get(name):
      raise ValueError(
          f"{where} is a checkpoint of another preset: tensor {name} has shape {found.get(name)}, expected {expected.get(name)}; "
          "use the preset it was made with")


def _restore(directory: pathlib.Path, config):
  newest = _newest(directory)
  if newest is None:
    raise ValueError(f"{directory} has no finished checkpoint; train or convert again")
  checkpointer = ocp.StandardCheckpointer()
  try:
    metadata = checkpointer.metadata(newest.absolute())
    stored = getattr(metadata, "item_metadata", metadata)
    stored = getattr(stored, "tree", stored)
    _compare(param_shapes(config), {p: tuple(v.shape) for p, v in _flat(stored).items()}, newest)
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    abstract = jax.tree.map(lambda m: jax.ShapeDtypeStruct(m.shape, m.dtype, sharding=device), stored)
    return checkpointer.restore(newest.absolute(), abstract)
  except (FileNotFoundError, KeyError) as e:
    raise ValueError(f"{newest} is damaged ({' '.join(str(e).split())[:200]}); use an older checkpoint") from e


def _read_hf(directory: pathlib.Path):
  config = hf_config.parse(hf_config.read(directory), directory)
  reader = safetensors_io.Reader(directory)
  if isinstance(config, VisionConfig):
    table, prefixes = mapping.vision_table(), ("vision_model.", "vision_tower.vision_model.")
  else:
    table, prefixes = mapping.decoder_table(config), ("model.",)
  params = mapping.read(reader, table, param_shapes(config), prefixes)
  return config, flax.traverse_util.unflatten_dict(params, sep="/")


def _with_dtype(config, params):
  """Activations and parameters in the checkpoint's own precision."""
  dtypes = {str(v.dtype) for v in jax.tree.leaves(params)}
  dtype = "float32" if "float32" in dtypes else sorted(dtypes)[0]

  def change(c):
    return dataclasses.replace(c, dtype=dtype, param_dtype=dtype)

  if isinstance(config, BlueLMConfig):
    return dataclasses.replace(config, vision=change(config.vision), decoder=change(config.decoder))
  return change(config)


def save_params(directory, config, params, companions=()) -> None:
  """Writes model.json + params/ (+ companion files, e.g. tokenizer.json); complete or not at all."""
  directory = pathlib.Path(directory).absolute()
  if directory.exists():
    raise ValueError(f"{directory} exists; choose another output or remove it")
  directory.parent.mkdir(parents=True, exist_ok=True)
  temporary = directory.with_name(f".{directory.name}.{uuid.uuid4().hex[:8]}")
  try:
    temporary.mkdir()
    with ocp.StandardCheckpointer() as checkpointer:
      checkpointer.save(temporary / _PARAMS, params)
    serialize.save(config, temporary)
    for file in companions:
      shutil.copy(file, temporary / pathlib.Path(file).name)
    temporary.rename(directory)
  finally:
    shutil.rmtree(temporary, ignore_errors=True)
