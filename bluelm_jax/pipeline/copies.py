"""Finding copies over all blocks, as a Beam transform. An element is a block's whole band, so Beam handles few of them."""

import functools
from typing import Any, Iterable, Iterator, Mapping, Sequence

import apache_beam as beam
import numpy as np

from bluelm_jax.pipeline import dedup
from bluelm_jax.pipeline import files
from bluelm_jax.pipeline import stages

_ROWS = np.uint64(32)  # an id is block << 32 | row
_ROW = np.uint64(0xFFFFFFFF)


class FindCopies(beam.PTransform):
  """Names of cleaned blocks -> the same, once NAME.npz says which rows are copies of others.

  Ids whose keys or bands are equal meet in one group a band, which gives candidate pairs. One worker confirms them by whole signatures
  and image hashes and finds the clusters; it reads the signatures of candidates alone.
  """

  def __init__(self, config: Mapping[str, Any], cleaned: stages.Stage, stage: stages.Stage):
    super().__init__()
    self._config, self._cleaned, self._stage = config, cleaned, stage

  def expand(self, names):
    pairs = names | beam.FlatMap(_bands, self._cleaned) | beam.GroupByKey() | beam.Map(_candidates) | beam.combiners.ToList()
    all_names = beam.pvalue.AsSingleton(names | "names" >> beam.combiners.ToList())
    return pairs | "clusters" >> beam.FlatMap(_decide, all_names, self._config, self._cleaned, self._stage)


def _bands(name: str, cleaned: stages.Stage) -> Iterator[tuple[str, tuple[np.ndarray, np.ndarray]]]:
  """(band, (ids, keys))."""
  arrays = files.read_arrays(cleaned.path(f"{name}.npz"))
  ids = (np.uint64(int(name)) << _ROWS) + np.arange(len(arrays["key"]), dtype=np.uint64)
  yield "key", (ids, arrays["key"])
  near, bands, image = arrays["near"], arrays["band"], arrays["image"]
  for band in range(dedup.BANDS):
    yield f"text {band}", (ids[near], bands[near, band])
  seen = image != 0
  for byte in range(dedup.IMAGE_BANDS if seen.any() else 0):
    yield f"image {byte}", (ids[seen], image[seen] >> np.uint64(8 * byte) & np.uint64(255))


def _candidates(group: tuple[str, Iterable[tuple[np.ndarray, np.ndarray]]]) -> tuple[str, np.ndarray]:
  """(what confirms, pairs of ids [P, 2]) of a band."""
  band, parts = group
  ids, keys = (np.concatenate(arrays) for arrays in zip(*parts))
  order = np.argsort(ids)  # blocks come in any order
  ids, keys = ids[order], keys[order]
  kind = band.split()[0]
  return kind, ids[dedup.all_pairs(keys) if kind == "image" else dedup.pairs(keys)]


def _confirmed(candidates: Sequence[tuple[str, np.ndarray]], config: Mapping[str, Any], names: Sequence[str], cleaned: stages.Stage):
  """(ids that occur in confirmed pairs or not, confirmed pairs [P, 2], bytes of the ids)."""
  by_kind = {kind: np.unique(np.concatenate([p for k, p in candidates if k == kind] + [np.zeros((0, 2), np.uint64)]), axis=0) for kind in ("key", "text", "image")}
  ids = np.unique(np.concatenate([pairs.ravel() for pairs in by_kind.values()]))
  sizes, images = np.zeros(len(ids), np.int64), np.zeros(len(ids), np.uint64)
  signatures = np.zeros((len(ids), dedup.PERMUTATIONS), np.uint8)
  for name in names:
    at = np.flatnonzero(ids >> _ROWS == np.uint64(int(name)))
    if len(at):
      arrays, rows = files.read_arrays(cleaned.path(f"{name}.npz")), (ids[at] & _ROW).astype(np.int64)
      sizes[at], images[at], signatures[at] = arrays["bytes"][rows], arrays["image"][rows], arrays["signature"][rows]
  a, b = np.searchsorted(ids, by_kind["text"]).T
  by_kind["text"] = by_kind["text"][dedup.similarity(signatures[a], signatures[b]) >= config["similarity"]]
  a, b = np.searchsorted(ids, by_kind["image"]).T
  by_kind["image"] = by_kind["image"][dedup.distance(images[a], images[b]) <= config["image_bits"]]
  return ids, np.concatenate(list(by_kind.values())), sizes


def _decide(candidates, names: list[str], config: Mapping[str, Any], cleaned: stages.Stage, stage: stages.Stage) -> list[str]:
  gone = dedup.copies(*_confirmed(candidates, config, names, cleaned))
  blocks = gone >> _ROWS

  def decide(name: str) -> dict[str, Any]:
    kept = files.read_json(cleaned.path(f"{name}.json"))["kept"]
    out = np.sort((gone[blocks == np.uint64(int(name))] & _ROW).astype(np.int64))
    files.write_arrays(stage.path(f"{name}.npz"), copies=out)
    return {"documents": kept, "kept": kept - len(out), "removed": {"copy": [len(out), []]} if len(out) else {}}

  return [stages.finish(stage, name, functools.partial(decide, name)) for name in sorted(names)]
