"""Which samples a run should see and how often: groups, their tokens, shares, and what of them is written."""

import functools
from typing import Any, Mapping, Sequence

import apache_beam as beam
import numpy as np

from bluelm_jax.data import tokenizer as tokenizer_lib
from bluelm_jax.pipeline import clean
from bluelm_jax.pipeline import files
from bluelm_jax.pipeline import lines
from bluelm_jax.pipeline import mixture
from bluelm_jax.pipeline import place
from bluelm_jax.pipeline import stages

_PROBES = 64  # samples of a group that are tokenised to learn its bytes a token


class Select(beam.PTransform):
  """Names of blocks -> one name, "plan", once the stage's plan.json says what is written. One worker, which reads arrays and few samples."""

  def __init__(self, config: Mapping[str, Any], cleaned: stages.Stage, deduped: stages.Stage, stage: stages.Stage):
    super().__init__()
    self._arguments = (config, cleaned, deduped, stage)

  def expand(self, names):
    return names | beam.combiners.ToList() | beam.FlatMap(_select, *self._arguments)


def _select(names: Sequence[str], config: Mapping[str, Any], cleaned, deduped, stage) -> list[str]:
  def work():
    size: dict[str, int] = {}
    count: dict[str, int] = {}
    probes: dict[str, list[tuple[int, str, int]]] = {}
    if config["quality"]["unique_lines"]:
      lines.choose(sorted(names), config, cleaned, deduped, stage)
    for name in sorted(names):
      arrays = files.read_arrays(cleaned.path(f"{name}.npz"))
      rows = place.survivors(name, cleaned, deduped)
      groups, at, amount = place.groups(arrays, config)[rows], place.order(arrays["key"][rows], config["seed"]), arrays["bytes"][rows]
      if config["quality"]["unique_lines"]:
        amount = lines.sizes(name, cleaned, stage)[rows]
      for group in np.unique(groups).tolist():
        inside = np.flatnonzero(groups == group)
        size[group] = size.get(group, 0) + int(amount[inside].sum())
        count[group] = count.get(group, 0) + len(inside)
        first = inside[np.argsort(at[inside])[:_PROBES]]
        probes[group] = sorted(probes.get(group, []) + [(int(at[i]), name, int(rows[i])) for i in first])[:_PROBES]
    per_token = _bytes_per_token(probes, config["tokenizer"], cleaned)
    amounts = {group: size[group] / per_token[group] for group in sorted(size)}
    shares = _shares(amounts, config)
    budget = config["mixture"]["tokens"] or sum(amounts.values())
    groups = {}
    for group in sorted(size):
      epochs = shares[group] * budget / amounts[group]
      groups[group] = {
          "documents": count[group], "bytes": size[group], "tokens": round(amounts[group]), "bytes_per_token": per_token[group], "share": shares[group],
          "epochs": epochs, "kept": min(epochs, 1.0) if config["mixture"]["tokens"] else 1.0, "shards": -(-size[group] // config["shard_bytes"])}
    files.write_json(stage.path("groups.plan"), groups)
    return {"documents": sum(count.values())}

  return [stages.finish(stage, "plan", work)]


@functools.cache
def tokenizer(path: str) -> tokenizer_lib.Tokenizer:
  """The one that counts; "" is the shipped one."""
  return tokenizer_lib.Tokenizer(path) if path else tokenizer_lib.Tokenizer()


def _bytes_per_token(probes, path: str, cleaned: stages.Stage) -> dict[str, float]:
  wanted = {(name, row): group for group, found in probes.items() for _, name, row in found}
  total = {group: [0, 0] for group in probes}
  for name in sorted({name for name, _ in wanted}):
    for row, sample in enumerate(files.read_samples(cleaned.path(f"{name}.samples"))):
      if (group := wanted.get((name, row))) is not None:
        text = clean.text_of(sample)
        total[group][0] += len(text.encode("utf-8", "surrogatepass"))
        total[group][1] += len(tokenizer(path).encode(text))
  return {group: read / max(made, 1) for group, (read, made) in total.items()}


def _shares(amounts: Mapping[str, float], config: Mapping[str, Any]) -> dict[str, float]:
  m = config["mixture"]
  if not amounts:
    raise ValueError("no document is left after cleaning; see the counts in stages/clean, and loosen config.quality or config.languages")
  if m["rule"] == "temperature":
    return mixture.temperature(amounts, m["temperature"])
  if m["rule"] == "unimax":
    return mixture.unimax(amounts, m["tokens"], m["max_epochs"])
  if m["rule"] == "fitted":
    return mixture.fitted(list(amounts), m["runs"], amounts, config["seed"])
  return mixture.natural(amounts)
