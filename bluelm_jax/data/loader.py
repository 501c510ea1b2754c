"""From a stage's data config to PackedBatches."""

import math
from typing import Mapping

import grain
import numpy as np

from bluelm_jax.data import faults
from bluelm_jax.data import ledger as ledger_lib
from bluelm_jax.data import mixture as mixture_lib
from bluelm_jax.data import pack
from bluelm_jax.data import planned as planned_lib
from bluelm_jax.data import sources
from bluelm_jax.data.chat import ChatFormat
from bluelm_jax.data.tasks import lookup
from bluelm_jax.data.tasks import reasoning
from bluelm_jax.data.tasks import screens

_PROBES = 48  # examples read to learn a source's mean length
_CAPS = ("epochs", "max_examples", "max_tokens")
KINDS = {  # kind of source -> the keys it takes beside kind and share
    "documents": ("path", "window", "packing", *_CAPS), "conversations": ("path", *_CAPS), "reasoning": ("styles", *_CAPS[1:]), "lookup": ("path", "lengths", "notes", *_CAPS),
    "screens": ("path", "tasks", "turns", *_CAPS), "screen_labels": ("path", *_CAPS)}
_OPTIONAL = ("window", "packing", *_CAPS)
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
    _check_share(where, config["share"])
    if not _is_path(config.get("path", "")):
      raise ValueError(f"{where} has path = {config['path']!r}; give the path of a data file, a glob or a directory, or several")
    for key in ("turns", "window", *_CAPS):
      if key in config and not (isinstance(config[key], int) and config[key] >= 1):
        raise ValueError(f"{where} has {key} = {config[key]!r}; use a whole number over 0")
    if "packing" in config and (config["packing"] != "plan" or "window" in config):
      raise ValueError(f"{where} has packing = {config['packing']!r}; use 'plan', without a window, or leave it out")
    if kind == "lookup":
      _check_lookup(where, config["lengths"], config["notes"])
    for key in set(_WEIGHTS) & set(config):
      weights = config[key]
      if not hasattr(weights, "items") or not set(weights) <= set(_WEIGHTS[key]):
        raise ValueError(f"{where} has {key} = {' '.join(str(weights).split())}; weigh names of {', '.join(_WEIGHTS[key])}")
      if not all(map(_number, weights.values())) or not sum(weights.values()):
        raise ValueError(f"{where} has {key} whose weights are not numbers of at least 0, one of them over 0; mend them")
    if objective and (kind == "screen_labels") != (objective == "dense"):
      raise ValueError(f"{where} of kind {kind!r} does not serve objective {objective!r}; use screen_labels with dense, and the other kinds with lm or distill")


def _check_lookup(where: str, lengths, notes) -> None:
  whole = isinstance(lengths, (list, tuple)) and len(lengths) == 2 and all(isinstance(n, int) for n in lengths)
  if not whole or not 1 <= lengths[0] <= lengths[1]:
    raise ValueError(f"{where} has lengths = {lengths!r}; use (fewest, most) tokens of text, e.g. (64, 384)")
  if not isinstance(notes, int) or not 1 <= notes <= lookup.MOST:
    raise ValueError(f"{where} has notes = {notes!r}; use a whole number from 1 to {lookup.MOST}")


def _check_share(where: str, share) -> None:
  if isinstance(share, (list, tuple)):
    knots = [k for k in share if isinstance(k, (list, tuple)) and len(k) == 2 and all(map(_number, k))]
    steps = [step for step, _ in knots]
    if len(knots) != len(share) or sorted(set(steps)) != steps or not any(value for _, value in knots):
      raise ValueError(f"{where} has share = {share!r}; use ((step, share), ...) with rising steps, one share over 0")
  elif not _number(share) or share == 0:
    raise ValueError(f"{where} has share = {share!r}; use a number over 0, or ((step, share), ...)")


def _is_path(value) -> bool:
  return isinstance(value, str) or isinstance(value, (list, tuple)) and bool(value) and all(isinstance(p, str) for p in value)


def _number(value) -> bool:
  return isinstance(value, (int, float)) and 0 <= value < math.inf


def mixture(config_sources: Mapping[str, Mapping], chat: ChatFormat, length: int, seed: int, rows: int = 1) -> grain.MapDataset:
  """Examples of all sources, mixed so that each has its share of the tokens; the plan of `planned` is its selection.

  Args:
    config_sources: name -> {"kind", "share", ...}; shares are of tokens, images' tokens included, and are turned into shares
      of examples by the mean length of the first examples of each source. A share may be ((step, share), ...), a straight line
      between; a step of it is rows x length tokens, as many as a full batch has. So where 1 % of the rows is padding, the share
      of step 1000 is reached at batch 1010, and a mean that is 5 % off moves it by as much. "epochs",
      "max_examples" and "max_tokens" (about) end a source; the mixture ends with the last that ends, if all do.
    length: the longest example, in tokens.
    rows: of a batch, whose steps the shares count.
  """
  return grain.MapDataset.select_from_datasets(*planned(config_sources, chat, length, seed, rows))


def planned(config_sources, chat: ChatFormat, length: int, seed: int, rows: int) -> tuple[list[grain.MapDataset], mixture_lib.Plan]:
  """The examples of each source, in the order of names, and which comes when; see `mixture`."""
  check(config_sources)
  datasets, parts = [], []
  for index, (name, config) in enumerate(sorted(config_sources.items())):
    dataset, epoch = _source(config, chat, length, seed + index, index)
    mean = _mean_length(dataset, name)
    caps = {"max_examples": 1, "epochs": epoch, "max_tokens": 1 / mean}  # in examples
    ends = [max(int(config[key] * examples), 1) for key, examples in caps.items() if key in config]
    datasets.append(dataset)
    parts.append(mixture_lib.Part(config["share"], mean, min(ends, default=None), epoch))
  return datasets, mixture_lib.Plan(parts, rows * length)


def _mean_length(dataset: grain.MapDataset, name: str) -> float:
  """Tokens of an example, over the first good ones; ValueError where all are bad."""
  found = [dataset[i] for i in range(_PROBES)]
  good = [len(e.tokens) for e in found if not isinstance(e, faults.Bad)]
  if not good:
    raise ValueError(f"data source {name!r} has no good example among its first {len(found)}: {found[0].message}")
  return float(np.mean(good))


def _source(config, chat, length, seed, index) -> sources.Source:
  kind, rest = config["kind"], (chat, seed, index)
  if kind == "reasoning":
    return sources.reasoning_text(dict(config["styles"]), *rest)
  if config.get("packing"):
    return planned_lib.documents(config["path"], chat, length, seed, index)
  if kind == "documents":
    return sources.documents(config["path"], chat, min(config.get("window", length), length), seed, index)
  if kind == "lookup":
    return sources.lookups(config["path"], chat, tuple(config["lengths"]), config["notes"], seed, index)
  if kind == "conversations":
    return sources.conversations(config["path"], *rest)
  if kind == "screens":
    return sources.screen_tasks(config["path"], dict(config["tasks"]), config["turns"], *rest)
  return sources.screen_labels(config["path"], *rest)


def batches(
    config_sources, chat: ChatFormat, spec: pack.PackSpec, seed: int, workers: int = 0, quarantine=None, max_bad_share: float = 0.01) -> pack.PackIterator:
  """PackedBatches of a mixture.

  Args:
    workers: processes that read ahead.
    quarantine: a JSONL file for the bad records; None writes none.
    max_bad_share: of the examples; more bad ones are a ValueError.
  """
  datasets, plan = planned(config_sources, chat, spec.length, seed, spec.rows)
  ledger = ledger_lib.Ledger(sorted(config_sources), plan, quarantine, max_bad_share)
  return pack.PackIterator(grain.MapDataset.select_from_datasets(datasets, plan), spec, workers, ledger)
