"""A checkpoint that is quick to make and to load: random weights, one layer a tower, the package's tokenizer."""

import dataclasses

import numpy as np

from bluelm_jax.data.tokenizer import Tokenizer
from bluelm_jax.interop import load
from bluelm_jax.interop import mapping
from tests.training import tiny


def write(directory, seed: int = 0, **decoder) -> None:
  """`decoder`: fields of its config that differ."""
  config, rng = tiny.shallow(), np.random.default_rng(seed)
  config = dataclasses.replace(config, decoder=dataclasses.replace(config.decoder, **decoder))
  draw = lambda path, shape: np.ones(shape) if path.endswith("scale") else rng.normal(0, 0.2, shape)
  tensors = {path: mapping.in_memory(draw(path, shape).astype(np.float32)) for path, shape in load.param_shapes(config).items()}
  load.save(directory, config, tensors, Tokenizer().files())
