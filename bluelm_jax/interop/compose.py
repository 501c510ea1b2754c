"""Making a BlueLM from a vision tower and a language model, and taking it apart again."""

import json
import pathlib
import shutil

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp

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
  """Writes our form of a vision tower, of a language model, or of both joined by a random adapter.

  Weights stream: one parameter is in memory at a time.
  """
  parts = {name: load.open_checkpoint(path) for name, path in (("vision", vision), ("decoder", decoder)) if path}
  if not parts:
    raise ValueError("nothing to convert; give --vision, --decoder or both")
  for name, kind in (("vision", VisionConfig), ("decoder", DecoderConfig)):
    if name in parts and not isinstance(parts[name][0], kind):
      raise ValueError(f"--{name}={vision if name == 'vision' else decoder} holds a {type(parts[name][0]).__name__}; swap the paths")
  companions = [p for n in _COMPANIONS if decoder and (p := pathlib.Path(decoder) / n).is_file()]
  if len(parts) == 1:
    (config, tensors), = parts.values()
    return load.save(output, config, tensors, companions)
  (v, vision_tensors), (d, decoder_tensors) = parts["vision"], parts["decoder"]
  config = BlueLMConfig(vision=v, adapter=AdapterConfig(), decoder=d, anyres=AnyResConfig(tile_size=v.grid * v.patch_size))
  tensors = {f"vision/{p}": t for p, t in vision_tensors.items()} | {f"decoder/{p}": t for p, t in decoder_tensors.items()}
  tensors |= {f"adapter/{p}": mapping.in_memory(a) for p, a in _adapter(config, seed).items()}
  load.save(output, config, tensors, companions)


def _adapter(config: BlueLMConfig, seed: int):
  module = Adapter(config.decoder, config.vision.grid, config.adapter.merge, config.adapter.hidden_dim or config.decoder.embed_dim)
  features = jnp.zeros((1, config.vision.grid**2, config.vision.embed_dim), config.vision.dtype)
  return flax.traverse_util.flatten_dict(nn.meta.unbox(module.init(jax.random.key(seed), features)["params"]), sep="/")


def export(checkpoint, output) -> None:
  """Writes the HuggingFace form: OUT/vision and OUT/decoder of a BlueLM, or a lone part in OUT itself.

  The adapter has no HuggingFace class; it stays in our checkpoint.
  """
  source = load.checkpoint_directory(checkpoint)
  config, tensors = load.open_checkpoint(source)
  joined = isinstance(config, BlueLMConfig)
  with load.fresh_directory(output) as directory:
    if not joined:
      _export_part(directory, config, tensors)
    for name in ("vision", "decoder") if joined else ():
      (directory / name).mkdir()
      part = {p.removeprefix(f"{name}/"): t for p, t in tensors.items() if p.startswith(f"{name}/")}
      _export_part(directory / name, getattr(config, name), part)
    for name in _COMPANIONS:
      if (source / name).is_file() and not isinstance(config, VisionConfig):
        shutil.copy(source / name, directory / ("decoder" if joined else "") / name)


def _export_part(directory: pathlib.Path, config, tensors) -> None:
  if isinstance(config, VisionConfig):
    values, table, prefix = hf_config.export_vision(config, config.param_dtype), mapping.vision_table(), "vision_model."
  else:
    values, table, prefix = hf_config.export_decoder(config, config.param_dtype), mapping.decoder_table(config), "model."
  (directory / "config.json").write_text(json.dumps(values, indent=1))
  safetensors_io.write(directory, mapping.theirs(tensors, table, prefix))
