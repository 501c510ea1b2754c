"""Finding copies over all blocks, as a Beam transform. An element is a block's whole band, so Beam handles few of them."""

import functools
from typing import Any, Iterable, Iterator, Mapping

import apache_beam as beam
import numpy as np

from bluelm_jax.pipeline import dedup
from bluelm_jax.pipeline import files
from bluelm_jax.pipeline import stages

_ROWS = np.uint64(32)  # an id is block << 32 | row


class FindCopies(beam.PTransform):
  """Names of cleaned blocks -> the same, once NAME.npz says which rows are copies of others.

  Equal keys and equal bands meet in one group a band; whole signatures and hashes confirm them there. Clusters of confirmed pairs are
  found by one worker, which sees only pairs.
  """

  def __init__(self, config: Mapping[str, Any], cleaned: stages.Stage, stage: stages.Stage):
    super().__init__()
    self._config, self._cleaned, self._stage = config, cleaned, stage

  def expand(self, names):
    pairs = (
        names
        | beam.FlatMap(_bands, self._cleaned)
        | beam.GroupByKey()
        | beam.Map(_confirm, self._config)
        | beam.combiners.ToList())
    all_names = beam.pvalue.AsSingleton(names | "names" >> beam.combiners.ToList())
    return pairs | "clusters" >> beam.FlatMap(_decide, all_names, self._cleaned, self._stage)


def _bands(name: str, cleaned: stages.Stage) -> Iterator[tuple[str, tuple[np.ndarray, ...]]]:
  """(band, (ids, keys, what confirms))."""
  arrays = files.read_arrays(cleaned.path(f"{name}.npz"))
  ids = (np.uint64(int(name)) << _ROWS) + np.arange(len(arrays["key"]), dtype=np.uint64)
  yield "key", (ids, arrays["key"], arrays["key"][:, None])
  near, bands, signature = arrays["near"], arrays["band"], arrays["signature"]
  for band in range(dedup.BANDS):
    yield f"text {band}", (ids[near], bands[near, band], signature[near])
  image = arrays["image"]
  seen = image != 0
  for byte in range(dedup.IMAGE_BANDS):
    yield f"image {byte}", (ids[seen], image[seen] >> np.uint64(8 * byte) & np.uint64(255), image[seen][:, None])


def _confirm(group: tuple[str, Iterable[tuple[np.ndarray, ...]]], config: Mapping[str, Any]) -> np.ndarray:
  """Pairs of ids [P, 2] of a band that are copies."""
  band, parts = group
  ids, keys, proof = (np.concatenate(arrays) for arrays in zip(*parts))
  order = np.argsort(ids)
  ids, keys, proof = ids[order], keys[order], proof[order]
  at = dedup.pairs(keys) if not band.startswith("image") else dedup.all_pairs(keys)
  a, b = proof[at[:, 0]], proof[at[:, 1]]
  if band.startswith("text"):
    at = at[dedup.similarity(a, b) >= config["similarity"]]
  elif band.startswith("image"):
    at = at[dedup.distance(a, b)[:, 0] <= config["image_bits"]]
  return ids[at]


def _decide(pairs: list[np.ndarray], names: list[str], cleaned: stages.Stage, stage: stages.Stage) -> list[str]:
  edges = np.unique(np.concatenate([p.reshape(-1, 2) for p in pairs]), axis=0) if pairs else np.zeros((0, 2), np.uint64)
  ids = np.unique(edges)
  sizes = np.zeros(len(ids), np.int64)
  blocks = (ids >> _ROWS).astype(np.int64)
  rows = (ids & np.uint64(0xFFFFFFFF)).astype(np.int64)
  for name in names:
    of_block = np.flatnonzero(blocks == int(name)) if len(ids) else []
    if len(of_block):
      sizes[of_block] = files.read_arrays(cleaned.path(f"{name}.npz"))["bytes"][rows[of_block]]
  gone = dedup.copies(ids, edges, sizes)
  gone_blocks = (gone >> _ROWS).astype(np.int64)

  def decide(name: str) -> dict[str, Any]:
    kept = files.read_json(cleaned.path(f"{name}.json"))["kept"]
    out = np.sort((gone[gone_blocks == int(name)] & np.uint64(0xFFFFFFFF)).astype(np.int64))
    files.write_arrays(stage.path(f"{name}.npz"), copies=out)
    return {"documents": kept, "kept": kept - len(out), "removed": {"copy": [len(out), []]} if len(out) else {}}

  return [stages.finish(stage, name, functools.partial(decide, name)) for name in sorted(names)]
