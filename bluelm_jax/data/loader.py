"""From a stage's data config to PackedBatches."""

import math
from typing import Mapping

import grain
import numpy as np

from bluelm_jax.data import pack
from bluelm_jax.data import sources
from bluelm_jax.data.chat import ChatFormat
from bluelm_jax.data.tasks import reasoning
from bluelm_jax.data.tasks import screens

_PROBES = 48  # examples read to learn a source's mean length
KINDS = {  # kind of source -> the keys it takes beside kind and share
    "documents": ("path", "window"), "reasoning": ("styles",), "screens": ("path", "tasks", "turns"), "screen_labels": ("path",)}
_OPTIONAL = ("window",)
_WEIGHTS = {"styles": reasoning.STYLES, "tasks": screens.TASKS}  # key -> the names it may weigh


def check(config_sources: Mapping[str, Mapping], objective: str | None = None) -> None:
  """Raises ValueError on a source with an unknown, absent or impossible key, or one that does not serve the objective."""
  if not config_sources:
    raise ValueError("the stage has no data sources; set config.data.sources")
  for name, config in config_sources.items():
    where = f"data source {name!r}"
    kind = config.get("kind") if hasattr(config, "get") else None
    if kind not in KINDS:
      raise ValueError(f"{where} has unknown kind {kind!r}; use {', '.join(KINDS)}")
    known = ("kind", "share", *KINDS[kind])
    for key in (*sorted(set(config) - set(known)), *known):
      if key not in known or key not in config and key not in _OPTIONAL:
        raise ValueError(f"{where} of kind {kind!r} has {'no' if key in known else 'an unknown'} key {key!r}; its keys are {', '.join(known)}")
    if not _number(config["share"]) or config["share"] == 0:
      raise ValueError(f"{where} has share = {config['share']!r}; use a number over 0")
    if not isinstance(config.get("path", ""), str):
      raise ValueError(f"{where} has path = {config['path']!r}; give the path of a shard")
    for key in ("turns", "window"):
      if key in config and not (isinstance(config[key], int) and config[key] >= 1):
        raise ValueError(f"{where} has {key} = {config[key]!r}; use a whole number over 0")
    for key in set(_WEIGHTS) & set(config):
      weights = config[key]
      if not hasattr(weights, "items") or not set(weights) <= set(_WEIGHTS[key]):
        raise ValueError(f"{where} has {key} = {' '.join(str(weights).split())}; weigh names of {', '.join(_WEIGHTS[key])}")
      if not all(map(_number, weights.values())) or not sum(weights.values()):
        raise ValueError(f"{where} has {key} whose weights are not numbers of at least 0, one of them over 0; mend them")
    if objective and (kind == "screen_labels") != (objective == "dense"):
      raise ValueError(f"{where} of kind {kind!r} does not serve objective {objective!r}; use screen_labels with dense, and the other kinds with lm")


def _number(value) -> bool:
  return isinstance(value, (int, float)) and 0 <= value < math.inf


def mixture(config_sources: Mapping[str, Mapping], chat: ChatFormat, length: int, seed: int) -> grain.MapDataset:
  """Examples of all sources, mixed so that each has its share of the tokens.

  Args:
    config_sources: name -> {"kind", "share", ...}; shares are of tokens, images' tokens included, and
      are turned into shares of examples by the mean length of the first examples of each source.
    length: the longest example, in tokens.
  """
  check(config_sources)
  datasets, weights = [], []
  for index, (name, config) in enumerate(sorted(config_sources.items())):
    dataset = _source(config, chat, length, seed + index, index)
    mean = np.mean([len(dataset[i].tokens) for i in range(_PROBES)])
    datasets.append(dataset)
    weights.append(config["share"] / mean)
  if len(datasets) == 1:
    return datasets[0]
  return grain.MapDataset.mix(datasets, np.array(weights) / sum(weights))


def _source(config, chat, length, seed, index) -> grain.MapDataset:
  kind = config["kind"]
  if kind == "documents":
    return sources.documents(config["path"], chat, min(config.get("window", length), length), seed, index)
  if kind == "reasoning":
    return sources.reasoning_text(dict(config["styles"]), chat, seed, index)
  if kind == "screens":
    return sources.screen_tasks(config["path"], dict(config["tasks"]), config["turns"], chat, seed, index)
  return sources.screen_labels(config["path"], chat, seed, index)


def batches(config_sources, chat: ChatFormat, spec: pack.PackSpec, seed: int, workers: int = 0) -> pack.PackIterator:
  """PackedBatches of a mixture; `workers` processes read ahead."""
  return pack.PackIterator(mixture(config_sources, chat, spec.length, seed), spec, workers)
