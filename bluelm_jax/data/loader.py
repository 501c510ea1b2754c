"""From a stage's data config to PackedBatches."""

from typing import Mapping

import grain
import numpy as np

from bluelm_jax.data import pack
from bluelm_jax.data import sources
from bluelm_jax.data.chat import ChatFormat

_PROBES = 48  # examples read to learn a source's mean length


def mixture(config_sources: Mapping[str, Mapping], chat: ChatFormat, length: int, seed: int) -> grain.MapDataset:
  """Examples of all sources, mixed so that each has its share of the tokens.

  Args:
    config_sources: name -> {"kind", "share", ...}; shares are of tokens, images' tokens included, and
      are turned into shares of examples by the mean length of the first examples of each source.
    length: the longest example, in tokens.
  """
  if not config_sources:
    raise ValueError("the stage has no data sources; set config.data.sources")
  datasets, weights = [], []
  for index, (name, config) in enumerate(sorted(config_sources.items())):
    dataset = _source(name, config, chat, length, seed + index, index)
    mean = np.mean([len(dataset[i].tokens) for i in range(_PROBES)])
    datasets.append(dataset)
    weights.append(config["share"] / mean)
  if len(datasets) == 1:
    return datasets[0]
  return grain.MapDataset.mix(datasets, np.array(weights) / sum(weights))


def _source(name, config, chat, length, seed, index) -> grain.MapDataset:
  kind = config["kind"]
  if kind == "documents":
    return sources.documents(config["path"], chat, min(config.get("window", length), length), seed, index)
  if kind == "reasoning":
    return sources.reasoning_text(dict(config["styles"]), chat, seed, index)
  if kind == "screens":
    return sources.screen_tasks(config["path"], dict(config["tasks"]), config["turns"], chat, seed, index)
  if kind == "screen_labels":
    return sources.screen_labels(config["path"], chat, seed, index)
  raise ValueError(f"data source {name!r} has unknown kind {kind!r}; use documents, reasoning, screens or screen_labels")


def batches(config_sources, chat: ChatFormat, spec: pack.PackSpec, seed: int) -> grain.DatasetIterator:
  """An iterator of (PackedBatch, state after it); `set_state(state)` resumes there in O(1)."""
  examples = mixture(config_sources, chat, spec.length, seed)
  # Few threads: the training step wants the cores.
  examples = examples.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=32))
  return iter(pack.PackIterDataset(examples, spec))
