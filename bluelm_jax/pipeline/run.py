"""The whole life of a data set: ingest, clean, dedup, select, write, as one Beam pipeline that can be taken up again."""

import functools
import logging
import os
import pathlib
import re
import shlex
import sys
from typing import Any, Mapping, Sequence

import apache_beam as beam
from apache_beam.options import pipeline_options
from apache_beam.runners.portability.fn_api_runner import fn_runner
from apache_beam.transforms import environments

from bluelm_jax.pipeline import card
from bluelm_jax.pipeline import copies
from bluelm_jax.pipeline import decontaminate
from bluelm_jax.pipeline import defaults
from bluelm_jax.pipeline import evaluation
from bluelm_jax.pipeline import files
from bluelm_jax.pipeline import mixture
from bluelm_jax.pipeline import remember
from bluelm_jax.pipeline import select
from bluelm_jax.pipeline import shards
from bluelm_jax.pipeline import stages
from bluelm_jax.pipeline.clean import clean
from bluelm_jax.pipeline.ingest import read
from bluelm_jax.pipeline.reasoning import blocks as reasoning

_CLEAN = ("languages", "language_confidence", "ascii_signs", "quality", "decontaminate", "classifier", "gui")
_SELECT = ("seed", "holdout", "holdout_by", "mixture", "tokenizer", "shard_bytes")


def run(config, output: str, beam_options: Sequence[str] = ()) -> dict[str, Any]:
  """Makes the data set under `output` and returns its manifest.

  Args:
    config: see defaults.dataset().
    output: a local folder, or one of an object store that the runner's workers reach.
    beam_options: Beam's own command line, e.g. ["--runner=DataflowRunner", ...]; by default a process a core of this machine.

  Raises:
    ValueError: an impossible config, a source without files, or too much that cannot be read.
  """
  defaults.check(config)
  c = config.to_dict()
  if c["mixture"]["rule"] == "fitted":
    c["mixture"]["runs"] = mixture.proxy_runs(c["mixture"]["runs"])  # what a file says, not its name, is part of the key
  output = output.rstrip("/")
  blocks, folders = read.blocks(c["sources"], c["block_bytes"], pathlib.Path("sources" if "://" in output else f"{output}/sources"))
  exams = evaluation.read(c["decontaminate"])
  asks = defaults.asks(config)  # questions, for which paths to the answers are to be found

  key, todo = "", []
  parts = dict(
      ingest=[c["sources"], blocks, read.states(c["sources"], blocks)], clean=[{k: c[k] for k in _CLEAN}, evaluation.digest(exams)], dedup=[c["dedup"]],
      **reasoning.keys(c) if asks else {}, select=[{k: c[k] for k in _SELECT}], write=[c["max_bytes"], c["join"], c["packing_length"]])
  stage = {}
  for name, part in parts.items():
    key = stages.key(key, part)
    stage[name] = stages.Stage(f"{output}/stages/{name}", key)
    if not stage[name].open():
      todo.append(stage[name])
  if not files.exists(stage["clean"].path("evaluation.npz")):
    decontaminate.save(stage["clean"].path("evaluation.npz"), exams)

  ready, unique = (stage["judge"], stage["judge"]) if asks else (stage["clean"], stage["dedup"])  # the blocks to write, and what in them are copies
  names = [f"{i:06d}" for i in range(len(blocks))]
  work = dict(zip(names, blocks))
  if todo:
    try:
      with stages.Progress(todo, len(blocks)), remember.remembered(), beam.Pipeline(**_runner(beam_options)) as pipeline:
        start = pipeline | "blocks" >> beam.Create(names, reshuffle=True)
        if stage["ingest"] in todo:
          check = functools.partial(_readable, limit=c["max_unreadable"])
          start |= "ingest" >> beam.Map(_ingest, work, c["sources"], folders, stage["ingest"]) | "ingested" >> stages.Done(stage["ingest"], check)
        if stage["clean"] in todo:
          start |= "clean" >> beam.Map(_clean, c, stage["ingest"], stage["clean"]) | "cleaned" >> stages.Done(stage["clean"])
        if stage["dedup"] in todo:
          start |= "dedup" >> copies.FindCopies(c["dedup"], stage["clean"], stage["dedup"]) | "deduped" >> stages.Done(stage["dedup"])
        if asks:
          start = reasoning.add(start, c, output, stage, todo)
        if stage["select"] in todo:
          start |= "select" >> select.Select(c, ready, unique, stage["select"]) | "selected" >> stages.Done(stage["select"])
        if stage["write"] in todo:
          _ = start | "write" >> shards.Write(c, output, ready, unique, stage["select"], stage["write"])
    except Exception as e:
      raise _user_error(e) from e
  return card.finish(c, output, stage)


def _runner(given: Sequence[str]) -> dict[str, Any]:
  """What beam.Pipeline takes: what the user chose, else a process a core of this machine."""
  if any(option.startswith("--runner") for option in given):
    return {"options": pipeline_options.PipelineOptions(list(given))}
  cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
  found = pipeline_options.PipelineOptions([f"--direct_num_workers={cores}", *given])
  if cores == 1:
    return {"runner": fn_runner.FnApiRunner(), "options": found}
  # Beam's multi_processing mode, which would take its own talkative program; it warns that the mode is not set.
  logging.getLogger(fn_runner.__name__).setLevel(logging.ERROR)
  worker = environments.SubprocessSDKEnvironment(f"{shlex.quote(sys.executable)} -m bluelm_jax.pipeline.worker")
  return {"runner": fn_runner.FnApiRunner(default_environment=worker), "options": found}


def _user_error(error: Exception) -> Exception:
  """A ValueError of ours that a worker raised, without Beam's traceback; any other error as it is."""
  found = re.findall(r"^ValueError: (.*?)(?: \[while running.*)?$", str(error), re.MULTILINE)
  if not isinstance(error, ValueError) and found:
    return ValueError(found[-1])
  return ValueError(re.sub(r" \[while running.*", "", str(error), flags=re.DOTALL)) if isinstance(error, ValueError) else error


def _ingest(name: str, work: Mapping[str, list], sources, folders, stage: stages.Stage) -> str:
  def do():
    kept, errors = [], []
    source = work[name][0][0]
    for item in read.block(work[name], sources[source], folders[source]):
      (errors if isinstance(item, ValueError) else kept).append(item)
    files.write_samples(stage.path(f"{name}.samples"), kept)
    checked = [s.meta["text_boxes"] for s in kept if "text_boxes" in s.meta]
    return {
        "documents": len(kept), "unreadable": len(errors), "errors": [str(e)[:300] for e in errors[:20]],
        "text_boxes": [len(checked), *(sum(c[i] for c in checked) for i in (0, 1))]}

  return stages.finish(stage, name, do)


def _readable(stage: stages.Stage, limit: float) -> None:
  counts = stage.counts().values()
  bad, good = sum(c["unreadable"] for c in counts), sum(c["documents"] for c in counts)
  if bad > limit * (bad + good):
    first = next(c["errors"][0] for c in counts if c["errors"])
    raise ValueError(f"{bad} of {bad + good} items cannot be read, the first: {first}; mend the sources or raise config.max_unreadable")
  if not good:
    raise ValueError("the sources hold no documents; check their paths and kinds")


def _clean(name: str, config, ingested: stages.Stage, stage: stages.Stage) -> str:
  def do():
    samples = files.read_samples(ingested.path(f"{name}.samples"))
    found = clean(samples, config, evaluation.load(stage.path("evaluation.npz")))
    files.write_samples(stage.path(f"{name}.samples"), found.samples)
    files.write_arrays(stage.path(f"{name}.npz"), **found.arrays)
    return {"documents": len(samples), "kept": len(found.samples), "removed": found.removed}

  return stages.finish(stage, name, do)
