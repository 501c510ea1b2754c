"""Making a BlueLM from a vision tower and a language model, and taking it apart again."""

import dataclasses
import json
import pathlib
import shutil
from typing import Sequence

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import tokenizers

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

_TOKENIZER, _GENERATION = "tokenizer.json", "generation_config.json"
_COMPANIONS = (_TOKENIZER, "tokenizer_config.json", "chat_template.jinja", "special_tokens_map.json", _GENERATION)


def convert(output, vision=None, decoder=None, seed: int | None = None, markers: Sequence[str] = ()) -> None:
  """Writes our form of a vision tower, of a language model, or of both joined by a random adapter.

  Weights stream: one parameter is in memory at a time.

  Args:
    seed: of the adapter; 0 where it is None.
    markers: tokens that a joined model needs; those its tokenizer lacks are added, and rows for them to the embedding.
  """
  parts = {name: load.open_checkpoint(path) for name, path in (("vision", vision), ("decoder", decoder)) if path}
  if not parts:
    raise ValueError("nothing to convert; give --vision, --decoder or both")
  for name, kind in (("vision", VisionConfig), ("decoder", DecoderConfig)):
    if name in parts and not isinstance(parts[name][0], kind):
      raise ValueError(f"--{name}={vision if name == 'vision' else decoder} holds a {type(parts[name][0]).__name__}; swap the paths")
  found = companions(decoder) if decoder else {}
  if len(parts) == 1:
    if seed is not None:
      raise ValueError("--seed is of the adapter between --vision and --decoder, and none is made here; leave it out")
    (config, tensors), = parts.values()
    return load.save(output, config, tensors, found)
  seed = seed or 0
  if not 0 <= seed < 2**32:
    raise ValueError(f"--seed={seed} is out of range; use 0 to {2**32 - 1}")
  (v, vision_tensors), (d, decoder_tensors) = parts["vision"], parts["decoder"]
  if _TOKENIZER in found:
    found[_TOKENIZER], needed = _with_markers(found[_TOKENIZER], markers, pathlib.Path(decoder) / _TOKENIZER)
    d, decoder_tensors = _with_rows(d, decoder_tensors, needed)
  config = BlueLMConfig(vision=v, adapter=AdapterConfig(), decoder=d, anyres=AnyResConfig(tile_size=v.grid * v.patch_size))
  tensors = {f"vision/{p}": t for p, t in vision_tensors.items()} | {f"decoder/{p}": t for p, t in decoder_tensors.items()}
  tensors |= {f"adapter/{p}": mapping.in_memory(a) for p, a in _adapter(config, seed).items()}
  load.save(output, config, tensors, found)


def companions(decoder) -> dict[str, bytes]:
  """The files beside a language model's weights; the tokens that end its answers are among them wherever they stood."""
  source = load.checkpoint_directory(decoder)
  found = {name: (source / name).read_bytes() for name in _COMPANIONS if (source / name).is_file()}
  ids, generation = hf_config.end_ids(source), json.loads(found.get(_GENERATION, b"{}"))
  if ids and generation.get("eos_token_id") is None:  # config.json, which is not copied, had them
    found[_GENERATION] = json.dumps({**generation, "eos_token_id": list(ids)}, indent=1).encode()
  return found


def _with_markers(text: bytes, markers: Sequence[str], path) -> tuple[bytes, int]:
  """tokenizer.json with the markers it lacks, and the rows it needs of an embedding."""
  try:
    tokenizer = tokenizers.Tokenizer.from_str(text.decode())
  except Exception as e:  # the library raises nothing narrower
    raise ValueError(f"{path} is not a tokenizer ({' '.join(str(e).split())[:100]}); download it again") from e
  missing = [m for m in markers if tokenizer.token_to_id(m) is None]
  tokenizer.add_special_tokens(missing)
  needed = max(tokenizer.get_vocab().values()) + 1
  return (tokenizer.to_str().encode() if missing else text), needed


def _with_rows(config: DecoderConfig, tensors: dict, needed: int) -> tuple[DecoderConfig, dict]:
  """Room for `needed` tokens: where there is too little, the vocabulary grows to a multiple of 128."""
  if needed <= config.vocab_size:
    return config, tensors
  rows = -(-needed // 128) * 128
  grown = {p: _grown(tensors[p], axis, rows) for p, axis in (("embedding", 0), ("lm_head", 1)) if p in tensors}
  return dataclasses.replace(config, vocab_size=rows), {**tensors, **grown}


def _grown(tensor: mapping.Tensor, axis: int, size: int) -> mapping.Tensor:
  """`size` along `axis`; what is new is the mean of the old, whose logit is never the largest."""
  shape = (*tensor.shape[:axis], size, *tensor.shape[axis + 1 :])

  def read(i=None):
    del i  # neither tensor is stacked
    new, old = np.empty(shape, tensor.dtype), tensor.read()
    kept, added = np.split(new, [tensor.shape[axis]], axis)
    kept[...], added[...] = old, old.mean(axis, dtype=np.float32, keepdims=True)
    return new

  return mapping.Tensor(shape, tensor.dtype, read)


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
