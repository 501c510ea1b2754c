"""Where a sample goes: whether it stays, its place in the order of the data set, its split and its group."""

import hashlib
from typing import Any, Mapping
import zlib

import numpy as np

from bluelm_jax.data.sample import Sample
from bluelm_jax.pipeline import files
from bluelm_jax.pipeline import join
from bluelm_jax.pipeline import stages
from bluelm_jax.pipeline import tokens


def survivors(name: str, cleaned: stages.Stage, deduped: stages.Stage) -> np.ndarray:
  """Rows of a block that are no copies."""
  count = files.read_json(cleaned.path(f"{name}.json"))["kept"]
  return np.setdiff1d(np.arange(count), files.read_arrays(deduped.path(f"{name}.npz"))["copies"])


def order(keys: np.ndarray, seed: int) -> np.ndarray:
  """The place of samples in the order of the data set, uint64: by content, so that neither blocks nor workers change it."""
  return tokens.mix(keys ^ tokens.mix(np.array([seed + 1], np.uint64)))


def of_name(name: str, seed: int) -> int:
  """The place in the order of the data set of what has a name."""
  key = int.from_bytes(hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")
  return int(order(np.array([key], np.uint64), seed)[0])


def is_test(sample: Sample, config: Mapping[str, Any]) -> bool:
  """Whether a sample is held out: its page, whatever the source, or its book or repository."""
  name = join.unit(sample) if config["holdout_by"] == "book" else sample.meta.get("page") or sample.source.partition(": ")[2] or sample.source
  return config["holdout"] > 0 and zlib.crc32(name.encode("utf-8", "surrogatepass")) % config["holdout"] == 0


def groups(arrays: Mapping[str, np.ndarray], config: Mapping[str, Any]) -> np.ndarray:
  """str [D]: the group of the mixture to which each sample of a block belongs."""
  by = config["mixture"]["by"]
  return np.full(len(arrays["key"]), config["name"]) if by == "all" else arrays[by]
