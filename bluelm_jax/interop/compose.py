"""Making a BlueLM from a vision tower and a language model, and taking it apart again."""

import json
import pathlib
import shutil
import uuid

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from bluelm_jax.interop import hf_config
from bluelm_jax.interop import load
from bluelm_jax.interop import mapping
from bluelm_jax.interop import safetensors_io
from bluelm_jax.models.bluelm import Adapter
from bluelm_jax.models.config import AdapterConfig
from bluelm_jax.models.config import AnyResConfig
from bluelm_jax.models.config import BlueLMConfig
from bluelm_jax.models.config import DecoderConfig
from bluelm_jax.models.config import VisionConfig

_COMPANIONS = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "special_tokens_map.json", "generation_config.json")


def convert(output, vision=None, decoder=None, seed: int = 0) -> None:
  """Writes our form of a vision tower, of a language model, or of both joined by a random adapter."""
  parts = {name: load.load_pretrained(path) for name, path in (("vision", vision), ("decoder", decoder)) if path}
  if not parts:
    raise ValueError("nothing to convert; give --vision, --decoder or both")
  for name, kind in (("vision", VisionConfig), ("decoder", DecoderConfig)):
    if name in parts and not isinstance(parts[name][0].config, kind):
      raise ValueError(f"--{name}={vision if name == 'vision' else decoder} holds a {type(parts[name][0].config).__name__}; swap the paths")
  companions = [p for n in _COMPANIONS if decoder and (p := pathlib.Path(decoder) / n).is_file()]
  if len(parts) == 1:
    (model, params), = parts.values()
    return load.save_params(output, model.config, params, companions)
  v, d = parts["vision"][0].config, parts["decoder"][0].config
  config = BlueLMConfig(vision=v, adapter=AdapterConfig(), decoder=d, anyres=AnyResConfig(tile_size=v.grid * v.patch_size))
  params = {"vision": parts["vision"][1], "adapter": _adapter(config, seed), "decoder": parts["decoder"][1]}
  load.save_params(output, config, params, companions)


def _adapter(config: BlueLMConfig, seed: int):
  module = Adapter(config.decoder, config.vision.grid, config.adapter.merge, config.adapter.hidden_dim or config.decoder.embed_dim)
  features = jnp.zeros((1, config.vision.grid**2, config.vision.embed_dim), config.vision.dtype)
  return jax.tree.map(np.asarray, nn.meta.unbox(module.init(jax.random.key(seed), features)["params"]))


def export(checkpoint, output) -> None:
  """Writes the HuggingFace form: OUT/vision and OUT/decoder of a BlueLM, or a lone part in OUT itself.

  The adapter has no HuggingFace class; it stays in our checkpoint.
  """
  source = load.checkpoint_directory(checkpoint)
  model, params = load.load_pretrained(source)
  output = pathlib.Path(output).absolute()
  if output.exists():
    raise ValueError(f"{output} exists; choose another output or remove it")
  output.parent.mkdir(parents=True, exist_ok=True)
  temporary = output.with_name(f".{output.name}.{uuid.uuid4().hex[:8]}")
  try:
    temporary.mkdir()
    if isinstance(model.config, BlueLMConfig):
      for name in ("vision", "decoder"):
        (temporary / name).mkdir()
        _export_part(temporary / name, getattr(model.config, name), params[name])
    else:
      _export_part(temporary, model.config, params)
    target = temporary / "decoder" if isinstance(model.config, BlueLMConfig) else temporary
    for name in _COMPANIONS:
      if (source / name).is_file() and not isinstance(model.config, VisionConfig):
        shutil.copy(source / name, target / name)
    temporary.rename(output)
  finally:
    shutil.rmtree(temporary, ignore_errors=True)


def _export_part(directory: pathlib.Path, config, params) -> None:
  params = {p: np.asarray(v) for p, v in flax.traverse_util.flatten_dict(params, sep="/").items()}
  if isinstance(config, VisionConfig):
    values, table, prefix = hf_config.export_vision(config, config.param_dtype), mapping.vision_table(), "vision_model."
  else:
    values, table, prefix = hf_config.export_decoder(config, config.param_dtype), mapping.decoder_table(config), "model."
  (directory / "config.json").write_text(json.dumps(values, indent=1))
  safetensors_io.write(directory, mapping.theirs(params, table, prefix))
