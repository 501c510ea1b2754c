"""Proxy runs: a small model trained on many mixtures of a data set's groups, from whose losses prepare fits the mixture (rule "fitted")."""

import hashlib
import json
import pathlib
import shutil
import sys
from typing import Any, Mapping

from ml_collections import ConfigDict
import numpy as np

from bluelm_jax import supervise
from bluelm_jax.data import sample
from bluelm_jax.training import defaults
from bluelm_jax.training import online
from bluelm_jax.training import stage

_LEAST = 1e-3  # share of a group in a run, so that all runs have the same sources and one program


def config() -> Any:
  """What configs/proxies.py fills: the stage that every run is, and how mixtures are drawn."""
  c = ConfigDict()
  c.runs = 16  # at least two more than groups; more may be asked for later
  c.seed = 0  # of the mixtures; the runs share the stage's
  c.concentration = 4.0  # of the Dirichlet around the natural shares; less spreads the mixtures more
  c.targets = ConfigDict()  # group -> weight of its held-out loss; {} weighs all groups alike
  c.source = ConfigDict({"kind": "documents"})  # how a stage reads the shards of a group, but for path and share; see data.loader
  c.stage = defaults.stage()
  return c.lock()


def shares(natural: np.ndarray, seed: int, run: int, concentration: float) -> np.ndarray:
  """The mixture of one run [groups], the same however many runs there are."""
  drawn = np.random.default_rng([seed, run]).dirichlet(np.maximum(natural * concentration, 0.05))
  drawn = np.maximum(drawn, _LEAST)
  return drawn / drawn.sum()


def run(c, data: str, output: str, life: supervise.Life | None = None) -> list[dict]:
  """Makes the runs that `output` does not hold yet, and returns all.

  Args:
    c: of `config`.
    data: a data set that prepare made, with held-out shards.
    output: a JSON file, a list of {"shares", "loss", "losses" of the groups, "run", "made_of"}. It is written when a run ends; the run
      under way lies beside it.

  Raises:
    ValueError: a mistake of the user, or `output` holds runs of another config or other data.
    supervise.Preempted: SIGTERM came; the same call goes on.
  """
  manifest = _manifest(data)
  groups = sorted(manifest["groups"])
  weights = _weights(c, groups)
  if c.runs < len(groups) + 2:
    raise ValueError(f"config.runs is {c.runs} for {len(groups)} groups; at least {len(groups) + 2} are needed to fit a mixture")
  if not c.concentration > 0:
    raise ValueError(f"config.concentration is {c.concentration}; use a number over 0")
  tokens = np.array([manifest["groups"][g]["tokens"] for g in groups], float)
  natural = tokens / tokens.sum()
  made_of = _digest(c, manifest)
  output = pathlib.Path(output)
  found = _found(output, made_of)
  for number in range(len(found), c.runs):
    mixed = shares(natural, c.seed, number, c.concentration)
    workdir = output.with_name(f"{output.stem}-{made_of}-{number:03d}")
    stage.run(_stage(c, data, groups, weights, mixed, number), workdir, life=life)
    life = life and life.next()
    found.append({"shares": dict(zip(groups, mixed.tolist())), **_losses(workdir, c, groups, weights), "run": number, "made_of": made_of})
    part = output.with_suffix(".part")
    part.write_text(json.dumps(found, ensure_ascii=False, indent=1), "utf-8")
    part.replace(output)
    shutil.rmtree(workdir)
    print(f"proxy run {number + 1} of {c.runs}: loss {found[-1]['loss']:.4f}, {', '.join(f'{g} {s:.3f}' for g, s in zip(groups, mixed))}", file=sys.stderr)
  for number in range(len(found)):  # of runs that were recorded just before the end
    shutil.rmtree(output.with_name(f"{output.stem}-{made_of}-{number:03d}"), ignore_errors=True)
  return found


def _manifest(data: str) -> Mapping[str, Any]:
  file = pathlib.Path(data) / "manifest.json"
  try:
    manifest = json.loads(file.read_text("utf-8"))
    groups = manifest["groups"]
  except (OSError, ValueError, KeyError, TypeError) as e:
    raise ValueError(f"{file} is no manifest of a data set; make one with python -m bluelm_jax.prepare") from e
  if len(groups) < 2:
    raise ValueError(f"{data} has one group, and nothing to mix; prepare it with config.mixture.by source, language or domain")
  for group in groups:
    if not any((pathlib.Path(data)).glob(f"{sample.group_name(group)}-train-*.array_record")):
      raise ValueError(f"{data} has no training shards of group {group!r}; prepare it anew, with mixture.tokens = 0")
  return manifest


def _weights(c, groups: list[str]) -> dict[str, float]:
  """Of the groups' held-out losses; they add up to 1."""
  given = c.targets.to_dict() or dict.fromkeys(groups, 1.0)
  if unknown := sorted(set(given) - set(groups)):
    raise ValueError(f"config.targets names {unknown[0]!r}, which is no group; use {', '.join(groups)}")
  if not all(isinstance(w, (int, float)) and 0 <= w < float("inf") for w in given.values()) or not sum(given.values()):
    raise ValueError(f"config.targets is {given}; give weights of at least 0, one of them over 0")
  return {g: w / sum(given.values()) for g, w in sorted(given.items()) if w}


def _digest(c, manifest: Mapping[str, Any]) -> str:
  """Of what every run is made of: the config but for how many, and the shards."""
  parts = {k: v for k, v in c.to_dict().items() if k != "runs"}, {name: shard["sha256"] for name, shard in manifest["shards"].items()}
  return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def _found(output: pathlib.Path, made_of: str) -> list[dict]:
  if not output.exists():
    output.parent.mkdir(parents=True, exist_ok=True)
    return []
  try:
    found = json.loads(output.read_text("utf-8"))
    same = all(r["made_of"] == made_of and r["run"] == i for i, r in enumerate(found))
  except (ValueError, KeyError, TypeError) as e:
    raise ValueError(f"{output} holds no proxy runs; choose another --output") from e
  if not same:
    raise ValueError(f"{output} holds runs of another config or other data; set them back, choose another --output, or remove it")
  return found


def _stage(c, data: str, groups, weights, mixed, number: int):
  """One run's stage. Sources are called by number, since a group's name may have dots, which a config's may not."""
  found = c.stage.copy_and_resolve_references()
  found.name = f"proxy {number + 1}"
  path = lambda group, split: f"{data}/{sample.group_name(group)}-{split}-*.array_record"
  found.data.sources, found.evaluate.sources = {}, {}
  found.evaluate.every = found.steps
  source = c.source.to_dict()
  for i, (group, share) in enumerate(zip(groups, mixed.tolist())):
    defaults.fill(found.data.sources, **{f"group_{i:03d}": dict(source, path=path(group, "train"), share=share)})
    if group in weights:
      if not any(pathlib.Path(data).glob(f"{sample.group_name(group)}-test-*.array_record")):
        raise ValueError(f"{data} has no held-out shard of group {group!r}; prepare it with config.holdout, or leave the group out of config.targets")
      defaults.fill(found.evaluate.sources, **{f"group_{i:03d}": dict(source, path=path(group, "test"), share=1.0)})
  return found


def _losses(workdir: pathlib.Path, c, groups, weights) -> dict[str, Any]:
  line = online.read(workdir)[c.stage.steps]
  losses = {g: line[f"loss/group_{i:03d}"] for i, g in enumerate(groups) if f"loss/group_{i:03d}" in line}
  if missing := sorted(set(weights) - set(losses)):
    raise ValueError(f"no held-out token of group {missing[0]!r} was reached; raise config.stage.evaluate.batches")
  return {"loss": sum(weights[g] * losses[g] for g in weights), "losses": losses}
