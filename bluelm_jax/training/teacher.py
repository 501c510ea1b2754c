"""The teacher of a stage that distils or teaches: what may teach, its description, its parameters on the mesh."""

import dataclasses

import flax.linen as nn
import jax

from bluelm_jax.data.tokenizer import Tokenizer
from bluelm_jax.interop import load
from bluelm_jax.models import config as config_lib
from bluelm_jax.models import serialize
from bluelm_jax.models.config import BlueLMConfig
from bluelm_jax.models.config import VisionConfig
from bluelm_jax.sharding import rules
from bluelm_jax.training import optimizer as optimizer_lib
from bluelm_jax.training.losses import Distillation


def described(config, student):
  """The teacher's model, its parameters in the precision in which it computes; None where no teacher computes.

  Reads its description alone. It attends as `config.execution` says.

  Args:
    student: the stage's model.

  Raises:
    ValueError: a teacher, or a store of its words, that cannot teach this student on the stage's batches.
  """
  online, stored = config.distill.teacher, config.distill.stored
  if stored and (online or config.objective != "distill"):
    raise ValueError(f"distill.stored {stored} takes the teacher's place in a stage that distils; set objective = \"distill\" and empty distill.teacher")
  if (config.objective in ("distill", "teach")) != bool(online or stored):
    raise ValueError(f"objective {config.objective!r} and distill.teacher {online!r} do not go together; set a teacher with distill or teach, and none with another")
  if not online and not stored:
    return None
  found = _fitting(config, student, *(("distill.stored", stored) if stored else ("distill.teacher", online)))
  if stored:
    return None
  asked = {name: config.execution[name] for name in ("attention", "context_parallel") if config.execution[name]}
  return config_lib.with_execution(_held(found), **asked)


def _fitting(config, student, key: str, path: str):
  """The description of the teacher that `key` names; ValueError where it cannot teach this student."""
  found, where = load.description(path), f"{key} {path}"
  if isinstance(found, VisionConfig):
    raise ValueError(f"{where} is a vision tower and predicts no tokens; use a language model or a BlueLM")
  decoder, own = getattr(found, "decoder", found), getattr(student, "decoder", student)
  if decoder.vocab_size != own.vocab_size:
    raise ValueError(f"{where} has a vocabulary of {decoder.vocab_size}, the student one of {own.vocab_size}; use a teacher with the student's")
  if config.data.length > decoder.context:
    raise ValueError(f"data.length {config.data.length} exceeds the context of {where}, {decoder.context}; lower it")
  if config.data.tile_slots and _tiles(found) != _tiles(student):
    raise ValueError(f"{where} does not see images in the student's tiles; set data.tile_slots = 0, or use a BlueLM with the same tiles")
  if config.distill.top_k > own.vocab_size:
    raise ValueError(f"distill.top_k {config.distill.top_k} exceeds the vocabulary of {own.vocab_size}; lower it")
  return found


def _tiles(model_config):
  """(pixels a side, tokens, places told apart) of a tile; None where no images are seen."""
  if not isinstance(model_config, BlueLMConfig):
    return None
  return model_config.anyres.tile_size, model_config.tokens_per_tile, model_config.adapter.tile_places


def _held(model_config):
  if isinstance(model_config, BlueLMConfig):
    return dataclasses.replace(model_config, vision=_held(model_config.vision), decoder=_held(model_config.decoder))
  return dataclasses.replace(model_config, param_dtype=model_config.dtype)


def check(config, student, tokenizer: Tokenizer) -> None:
  """Raises ValueError on a teacher that cannot teach this student, or whose tokenizer gives tokens other ids."""
  described(config, student)
  named = config.distill.teacher or config.distill.stored
  if not named:
    return
  own = Tokenizer(load.checkpoint_directory(named) / "tokenizer.json")
  if own.ids() != tokenizer.ids():
    raise ValueError(f"{own.path} and {tokenizer.path} give tokens different ids; use a teacher with the student's tokenizer")


def distillation(config, student) -> Distillation | None:
  """What the train step is to know; None where a stage does not distil."""
  model_config = described(config, student)
  if config.objective != "distill":
    return None
  return Distillation(model_config and serialize.build(model_config), config.distill.temperature, config.distill.share)


def abstract(config, student, mesh):
  """Shapes of its parameters with the shardings that the rule table gives them; None where no teacher computes."""
  model_config = described(config, student)
  if model_config is None:
    return None
  boxed = load.abstract_params(model_config)
  shardings = rules.param_shardings(mesh, boxed, pieces=config.zero == 3)
  return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), nn.meta.unbox(boxed), shardings)


def params(config, student, mesh):
  """Its parameters on the mesh, read one by one; None where no teacher computes."""
  like = abstract(config, student, mesh)
  if like is None:
    return None
  _, tensors = load.open_checkpoint(config.distill.teacher)
  place = lambda x, path: jax.device_put(tensors[path].read().astype(x.dtype), x.sharding)
  return optimizer_lib.merge({path: place(x, path) for path, x in optimizer_lib.paths(like).items()}, {})
