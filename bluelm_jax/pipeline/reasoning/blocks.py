"""The stages that questions go through between dedup and select, each for one block: rewrite, sample, judge.

After them a block holds conversations as `clean` would leave them, so select and write go on as ever.
"""

from typing import Any, Mapping, Sequence

import apache_beam as beam
import numpy as np

from bluelm_jax.pipeline import clean
from bluelm_jax.pipeline import evaluation
from bluelm_jax.pipeline import files
from bluelm_jax.pipeline import place
from bluelm_jax.pipeline import stages
from bluelm_jax.pipeline import tokens
from bluelm_jax.pipeline.reasoning import generator
from bluelm_jax.pipeline.reasoning import judge as judge_lib
from bluelm_jax.pipeline.reasoning import prompts
from bluelm_jax.pipeline.reasoning import rewrite as rewrite_lib


def keys(config: Mapping[str, Any]) -> dict[str, list]:
  """What each of the stages depends on, beside the one before."""
  r = dict(config["reasoning"])
  who = generator.identity(r.pop("generator"))
  return dict(rewrite=[who, r.pop("rewrite")], sample=[who, r.pop("samples")], judge=[r, config["seed"], config["tokenizer"]])


def add(names, config: Mapping[str, Any], output: str, stage: Mapping[str, stages.Stage], todo: Sequence[stages.Stage]):
  """Adds the stages that are to do to a pipeline: names of blocks -> the same, when they are done."""
  answers = f"{output}/answers"
  if stage["rewrite"] in todo:
    names |= "rewrite" >> beam.Map(rewrite, config, answers, stage["clean"], stage["dedup"], stage["rewrite"]) | "rewritten" >> stages.Done(stage["rewrite"])
  if stage["sample"] in todo:
    names |= "sample" >> beam.Map(sample, config, answers, stage["rewrite"], stage["sample"]) | "sampled" >> stages.Done(stage["sample"])
  if stage["judge"] in todo:
    names |= "judge" >> beam.Map(judge, config, answers, stage["clean"], stage["rewrite"], stage["judge"]) | "judged" >> stages.Done(stage["judge"])
  return names


def rewrite(name: str, config, answers: str, cleaned: stages.Stage, deduped: stages.Stage, stage: stages.Stage) -> str:
  """The questions that are no copies, and others made of them."""

  def work():
    found = files.read_samples(cleaned.path(f"{name}.samples"))
    given = [found[i] for i in place.survivors(name, cleaned, deduped)]
    out, counts = rewrite_lib.rewrite(given, config, evaluation.load(cleaned.path("evaluation.npz")), answers)
    files.write_samples(stage.path(f"{name}.samples"), out)
    return {"documents": len(given), "kept": len(out), **counts}

  return stages.finish(stage, name, work)


def sample(name: str, config, answers: str, rewritten: stages.Stage, stage: stages.Stage) -> str:
  """Asks the generator for ways to the answers."""

  def work():
    asked = [prompts.solve(q) for q in files.read_samples(rewritten.path(f"{name}.samples"))]
    found = generator.ask(config["reasoning"]["generator"], asked, config["reasoning"]["samples"], answers)
    return {"documents": sum(map(len, found.replies)), "refused": sorted(found.refused.values())[:20]}

  return stages.finish(stage, name, work)


def judge(name: str, config, answers: str, cleaned: stages.Stage, rewritten: stages.Stage, stage: stages.Stage) -> str:
  """The paths that are kept, as conversations; a block is empty where none is."""

  def work():
    questions = files.read_samples(rewritten.path(f"{name}.samples"))
    r = config["reasoning"]
    found = generator.kept(r["generator"], [prompts.solve(q) for q in questions], r["samples"], answers)
    samples, kinds, removed = judge_lib.judge(questions, found, config, evaluation.load(cleaned.path("evaluation.npz")))
    texts = [clean.text_of(s) for s in samples]
    arrays = clean.compare(samples, texts, [[] for _ in samples], tokens.words(texts))
    files.write_samples(stage.path(f"{name}.samples"), samples)
    files.write_arrays(stage.path(f"{name}.npz"), copies=np.zeros(0, np.int64), **arrays)
    return {"documents": sum(map(len, found)), "kept": len(samples), "kinds": kinds, "removed": removed}

  return stages.finish(stage, name, work)
