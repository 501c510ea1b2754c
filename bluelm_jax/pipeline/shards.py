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
from bluelm_jax.pipeline import clean
from bluelm_jax.pipeline import documents
from bluelm_jax.pipeline import files
from bluelm_jax.pipeline import join
from bluelm_jax.pipeline import lines
from bluelm_jax.pipeline import place
from bluelm_jax.pipeline import reach
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
    names = plan | beam.combiners.ToList() | "again" >> beam.FlatMap(_blocks, cleaned) | beam.Reshuffle()  # one plan, made now or earlier
    arguments = (self._config, cleaned, deduped, selected)
    if self._config["join"]["tokens"]:
      records = names | "units" >> beam.FlatMap(_units, *arguments) | "unit" >> beam.GroupByKey() | "join" >> beam.FlatMap(_join, self._config, selected)
    else:
      records = names | beam.FlatMap(_records, *arguments)
    return (
        records
        | beam.GroupByKey()
        | beam.Map(_shard, self._config, self._output, self._stage)
        | stages.Done(self._stage))


def _blocks(_, cleaned: stages.Stage) -> list[str]:
  return files.read_json(cleaned.path("done.json"))


def _survivors(name: str, config, cleaned, deduped, selected) -> Iterator[tuple[sample_lib.Sample, str, int]]:
  """(sample, group, place) of a block's samples that are no copies."""
  arrays = files.read_arrays(cleaned.path(f"{name}.npz"))
  rows = place.survivors(name, cleaned, deduped)
  at, groups = place.order(arrays["key"], config["seed"]), place.groups(arrays, config)
  samples = files.read_samples(cleaned.path(f"{name}.samples")) if len(rows) else []
  if config["quality"]["unique_lines"] and len(rows):
    samples = lines.reduced(name, samples, config, selected)
  for row in rows:
    if clean.text_of(samples[row]):
      yield samples[row], str(groups[row]), int(at[row])


def _records(name: str, config, cleaned, deduped, selected) -> Iterator[tuple[str, list[bytes]]]:
  """(shard, records) of a block, each record behind the 12 bytes it is sorted by; a long document becomes several pieces."""
  plans = files.read_json(selected.path("groups.plan"))
  out = collections.defaultdict(list)
  for sample, group, at in _survivors(name, config, cleaned, deduped, selected):
    split = "test" if place.is_test(sample, config) else "train"
    if split == "train" and at >= plans[group]["kept"] * 2**64:
      continue
    for i, piece in enumerate(_pieces(sample, config["max_bytes"])):
      out[_shard_of(group, split, at, plans)].append(at.to_bytes(8, "big") + i.to_bytes(4, "big") + sample_lib.encode(piece))
  yield from sorted(out.items())


def _shard_of(group: str, split: str, at: int, plans) -> str:
  count = plans[group]["shards"] if split == "train" else 1
  # The high bits choose what is kept, so others choose the shard.
  return shard_name(group, split, (at & 0xFFFFFFFF) * count >> 32, count)


def _units(name: str, config, cleaned, deduped, selected) -> Iterator[tuple[tuple[str, str], list[tuple[bytes, str, bytes]]]]:
  """((unit, split), [(place, group, record)]) of a block's documents."""
  out = collections.defaultdict(list)
  for sample, group, at in _survivors(name, config, cleaned, deduped, selected):
    out[join.unit(sample), "test" if place.is_test(sample, config) else "train"].append((at.to_bytes(8, "big"), group, sample_lib.encode(sample)))
  yield from sorted(out.items())


def _join(given: tuple[tuple[str, str], Iterable[list[tuple[bytes, str, bytes]]]], config, selected) -> Iterator[tuple[str, list[bytes]]]:
  """(shard, records) of a unit: all of it is kept or nothing, in the group to which most of its documents belong."""
  (unit, split), parts = given
  documents_of = sorted(d for part in parts for d in part)
  plans = files.read_json(selected.path("groups.plan"))
  group = min(collections.Counter(g for _, g, _ in documents_of).items(), key=lambda kv: (-kv[1], kv[0]))[0]
  if split == "train" and place.of_name(unit, config["seed"]) >= plans[group]["kept"] * 2**64:
    return
  tokenizer = select.tokenizer(config["tokenizer"])
  for i, sample in enumerate(join.samples([sample_lib.decode(record) for _, _, record in documents_of], config, lambda text: len(tokenizer.encode(text)))):
    at = place.of_name(f"{unit}#{i}", config["seed"])
    yield _shard_of(group, split, at, plans), [at.to_bytes(8, "big") + bytes(4) + sample_lib.encode(sample)]


def shard_name(group: str, split: str, index: int, count: int) -> str:
  return f"{sample_lib.group_name(group)}-{split}-{index:05d}-of-{count:05d}.array_record"


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
      sample_lib.write_records(path, records)
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
    if config["join"]["tokens"]:
      counts["reach"] = {label: _reach(samples, label, config["join"]["far"]) for label in (join.NATIVE, join.JOINED)}
    counts["examples"] = [[s.source, s.licence, clean.text_of(s)[:_EXAMPLE]] for s in samples[:_EXAMPLES]]
    if config["packing_length"]:
      tokenizer = select.tokenizer(config["tokenizer"])
      counts["lengths"] = [len(tokenizer.encode(clean.text_of(s))) + 1 for s in samples]  # and the end token
    return counts

  return stages.finish(stage, name, work)


def _reach(samples: list[sample_lib.Sample], label: str, far: int) -> dict[str, int]:
  """Counts of the report of long range."""
  found = [s for s in samples if s.meta["long"] == label]
  starts = [[at for _, at in s.meta.get("parts", [["", 0]])] for s in found]
  return reach.counts([clean.text_of(s) for s in found], [s.meta["tokens"] for s in found], starts, far)
