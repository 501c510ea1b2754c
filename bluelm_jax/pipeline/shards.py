"""The last stage: samples to ArrayRecord shards, in an order that their contents give."""

import collections
import dataclasses
import hashlib
import os
import tempfile
from typing import Any, Iterable, Iterator, Mapping

import apache_beam as beam
import numpy as np

from bluelm_jax.data import sample as sample_lib
from bluelm_jax.data import tokenizer as tokenizer_lib
from bluelm_jax.pipeline import clean
from bluelm_jax.pipeline import documents
from bluelm_jax.pipeline import files
from bluelm_jax.pipeline import select
from bluelm_jax.pipeline import stages

_EXAMPLES, _EXAMPLE = 3, 400  # samples a shard shown on the data card, and their characters


class Write(beam.PTransform):
  """Names of blocks -> names of shards, once they are written."""

  def __init__(self, config: Mapping[str, Any], output: str, cleaned: stages.Stage, deduped: stages.Stage, selected: stages.Stage, stage: stages.Stage):
    super().__init__()
    self._config, self._output, self._stages, self._stage = config, output, (cleaned, deduped, selected), stage

  def expand(self, plan):
    cleaned, deduped, selected = self._stages
    return (
        plan
        | beam.combiners.ToList()  # one, whether the plan was made now or earlier
        | "again" >> beam.FlatMap(_blocks, cleaned)
        | beam.Reshuffle()
        | beam.FlatMap(_records, self._config, cleaned, deduped, selected)
        | beam.GroupByKey()
        | beam.Map(_shard, self._config, self._output, self._stage)
        | stages.Done(self._stage))


def _blocks(_, cleaned: stages.Stage) -> list[str]:
  return files.read_json(cleaned.path("done.json"))


def _records(name: str, config, cleaned, deduped, selected) -> Iterator[tuple[str, list[bytes]]]:
  """(shard, records) of a block, each record behind the 12 bytes it is sorted by; a long document becomes several pieces."""
  groups = files.read_json(selected.path("groups.plan"))
  arrays = files.read_arrays(cleaned.path(f"{name}.npz"))
  rows = select.survivors(name, cleaned, deduped)
  place = select.order(arrays["key"], config["seed"])
  group_of = arrays[config["mixture"]["by"]]
  samples = files.read_samples(cleaned.path(f"{name}.samples")) if len(rows) else []
  out = collections.defaultdict(list)
  for row in rows:
    sample, group, at = samples[row], str(group_of[row]), int(place[row])
    split = "test" if select.is_test(sample.source, config["holdout"]) else "train"
    plan = groups[group]
    if split == "train" and at >= plan["kept"] * 2**64:
      continue
    count = plan["shards"] if split == "train" else 1
    # The high bits choose what is kept, so others choose the shard.
    shard = shard_name(group, split, (at & 0xFFFFFFFF) * count >> 32, count)
    for i, piece in enumerate(_pieces(sample, config["max_bytes"])):
      out[shard].append(at.to_bytes(8, "big") + i.to_bytes(4, "big") + sample_lib.encode(piece))
  yield from sorted(out.items())


def shard_name(group: str, split: str, index: int, count: int) -> str:
  return f"{''.join(c if c.isalnum() or c in '-_.' else '_' for c in group)}-{split}-{index:05d}-of-{count:05d}.array_record"


def _pieces(sample: sample_lib.Sample, max_bytes: int) -> Iterable[sample_lib.Sample]:
  if not max_bytes or sample.messages or sample.images:
    return [sample]
  return [dataclasses.replace(sample, text=text) for text in documents.split(sample.text, max_bytes)]


def _shard(group: tuple[str, Iterable[list[bytes]]], config, output: str, stage: stages.Stage) -> str:
  name, parts = group

  def work():
    records = [record[12:] for record in sorted(r for part in parts for r in part)]
    samples = [sample_lib.decode(record) for record in records]
    with tempfile.TemporaryDirectory() as local:
      path = os.path.join(local, name)
      sample_lib.write_shard(path, samples)
      with open(path, "rb") as f:
        data = f.read()
    files.write(f"{output}/{name}", data)
    counts: dict[str, Any] = {"documents": len(records), "bytes": sum(len(clean.text_of(s).encode("utf-8", "surrogatepass")) for s in samples)}
    counts |= {"sha256": hashlib.sha256(data).hexdigest(), "images": sum(len(s.images) for s in samples)}
    counts["licence"] = dict(collections.Counter(s.licence for s in samples))
    for label in ("language", "domain", "ability"):
      counts[label] = dict(collections.Counter(s.meta[label] for s in samples))
    counts["source"] = dict(collections.Counter(clean.source_name(s) for s in samples))
    counts["octaves"] = np.bincount([max(len(clean.text_of(s)), 1).bit_length() for s in samples]).tolist()
    counts["examples"] = [[s.source, s.licence, clean.text_of(s)[:_EXAMPLE]] for s in samples[:_EXAMPLES]]
    if config["packing_length"]:
      tokenizer = tokenizer_lib.Tokenizer(config["tokenizer"]) if config["tokenizer"] else tokenizer_lib.Tokenizer()
      counts["lengths"] = [len(tokenizer.encode(clean.text_of(s))) + 1 for s in samples]  # and the end token
    return counts

  return stages.finish(stage, name, work)
