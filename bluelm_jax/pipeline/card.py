"""What a finished data set says of itself: manifest.json, the packing plan, and a data card in HTML."""

import collections
import html
import json
from typing import Any, Mapping

from etils import epath

import bluelm_jax
from bluelm_jax.data.sample import PACKING
from bluelm_jax.pipeline import charts
from bluelm_jax.pipeline import documents
from bluelm_jax.pipeline import files
from bluelm_jax.pipeline import join
from bluelm_jax.pipeline import reach
from bluelm_jax.pipeline import select
from bluelm_jax.pipeline import stages
from bluelm_jax.pipeline.reasoning import report

_LABELS = ("language", "domain", "ability", "source", "licence")


def finish(config: Mapping[str, Any], output: str, stage: Mapping[str, stages.Stage]) -> dict[str, Any]:
  """Writes manifest.json and card.html from what the stages counted; returns the manifest. The same data give the same bytes."""
  shards = stage["write"].counts()
  for path in epath.Path(output).glob("*.array_record"):
    if path.name not in shards:
      path.unlink()  # of an earlier config
  groups = files.read_json(stage["select"].path("groups.plan"))
  manifest: dict[str, Any] = {
      "name": config["name"], "version": bluelm_jax.__version__, "config": config, "yields": _yields(stage), "groups": groups,
      "documents": sum(s["documents"] for s in shards.values()), "bytes": sum(s["bytes"] for s in shards.values()), "images": sum(s["images"] for s in shards.values()),
      "tokens_are": "counted" if config["packing_length"] else f"estimated from 64 samples a group with {config['tokenizer'] or 'the shipped tokenizer'}",
      **{label: dict(sum((collections.Counter(s[label]) for s in shards.values()), collections.Counter())) for label in _LABELS},
      "shards": {name: {k: s[k] for k in ("documents", "bytes", "images", "sha256")} for name, s in shards.items()}}
  if config["join"]["tokens"]:
    manifest["long"] = _long(config, shards, manifest["bytes"] / sum(g["bytes"] for g in groups.values()))
  if config["packing_length"]:
    manifest["tokens"] = sum(sum(s["lengths"]) for s in shards.values())
    manifest["packing"] = _packing(shards, config["packing_length"], config["tokenizer"], output)
  else:
    manifest["tokens"] = round(sum(g["tokens"] * g["kept"] for g in groups.values()))
  files.write_json(f"{output}/manifest.json", manifest)
  removed = collections.defaultdict(list)
  for name in _removing(stage):
    for counts in stage[name].counts().values():
      for rule, (_, examples) in counts["removed"].items():
        removed[rule] += examples
  files.write(f"{output}/card.html", _card(manifest, shards, removed).encode())
  return manifest


def _yields(stage: Mapping[str, stages.Stage]) -> dict[str, Any]:
  """What came into and out of every stage, and how much each rule removed."""
  found: dict[str, Any] = {}
  ingest = stage["ingest"].counts().values()
  found["ingest"] = {"documents": sum(c["documents"] for c in ingest), "unreadable": sum(c["unreadable"] for c in ingest)}
  screens, right, checked = (sum(c["text_boxes"][i] for c in ingest) for i in range(3))
  if screens:
    found["text_boxes"] = {"screens": screens, "right": right, "checked": checked}
  for name in _removing(stage):
    counts = stage[name].counts().values()
    removed = sum((collections.Counter({rule: n for rule, (n, _) in c["removed"].items()}) for c in counts), collections.Counter())
    found[name] = {"documents": sum(c["documents"] for c in counts), "kept": sum(c["kept"] for c in counts), "removed": dict(sorted(removed.items()))}
  if "judge" in stage:
    found["reasoning"] = report.yields(stage)
  return found


def _long(config: Mapping[str, Any], shards: Mapping[str, Mapping], kept: float) -> dict[str, Any]:
  """The report of long range (reach.py); `kept` is the share of the text that stands in samples."""
  total = {label: {key: sum(s["reach"][label][key] for s in shards.values()) for key in reach.COUNTS} for label in (join.NATIVE, join.JOINED)}
  return {"far_is": config["join"]["far"], "kept": kept, **{label: reach.shares(t) for label, t in total.items()}}


def _removing(stage: Mapping[str, stages.Stage]) -> list[str]:
  """The stages that remove samples."""
  return [name for name in ("clean", "dedup", "rewrite", "judge") if name in stage]


def _packing(shards: Mapping[str, Mapping], row: int, tokenizer: str, output: str) -> dict[str, Any]:
  """Writes packing.json, which data/planned.py reads: shard -> rows, each the list of the records that share it. Returns how full they are."""
  lengths = {name: [n - 1 for n in s["lengths"]] for name, s in shards.items()}  # the end token is a target alone
  plans = {name: documents.packing(some, row) for name, some in lengths.items()}
  plan = {"row": row, "tokenizer": select.tokenizer(tokenizer).digest, "rows": plans}
  files.write(f"{output}/{PACKING}", json.dumps(plan, sort_keys=True).encode())
  rows = sum(-(-max(sum(lengths[name][i] for i in r), 1) // row) for name, plan in plans.items() for r in plan)
  return {"row": row, "rows": rows, "fill": sum(map(sum, lengths.values())) / max(rows * row, 1)}


_STYLE = "body{font:15px/1.5 system-ui,sans-serif;max-width:60em;margin:2em auto;padding:0 1em;color:#222}td,th{padding:.1em .8em .1em 0;text-align:left;vertical-align:top}pre{white-space:pre-wrap;background:#f4f4f4;padding:.6em}rect{fill:#4a7ab5}svg text{font:12px system-ui,sans-serif}h2{margin-top:1.6em}"


def _long_section(long: Mapping[str, Any]) -> list[str]:
  names = ("samples", "tokens", "beyond", "own", "far", "control", "true")
  rows = [[label, *("-" if (x := long[label][k]) is None else f"{x:,}" if isinstance(x, int) else f"{x:.1%}" for k in names)] for label in (join.NATIVE, join.JOINED)]
  return [
      f"<p>{long['kept']:.1%} of the clean text stands in these samples; the rest has too few tokens in its repository or book, or the mixture's budget leaves it out. "
      f"N = {long['far_is']:,} tokens.</p>", charts.table(["", *names], rows), f"<pre>{html.escape(reach.__doc__)}</pre>"]


def _card(manifest: Mapping[str, Any], shards: Mapping[str, Mapping], removed: Mapping[str, list]) -> str:
  m, y = manifest, manifest["yields"]
  by_count = {label: dict(sorted(m[label].items(), key=lambda kv: (-kv[1], kv[0]))) for label in _LABELS}
  octaves = collections.Counter()
  for shard in shards.values():
    octaves.update({i: n for i, n in enumerate(shard["octaves"]) if n})
  names = {"clean": "clean", "dedup": "no copies", "rewrite": "with rewritten", "judge": "good paths"}
  steps = {"read": y["ingest"]["documents"], **{label: y[name]["kept"] for name, label in names.items() if name in y}, "written": m["documents"]}
  gone = {"unreadable": y["ingest"]["unreadable"], **sum((collections.Counter(y[name]["removed"]) for name in names if name in y), collections.Counter())}
  out = [
      f"<!doctype html><meta charset=utf-8><title>{html.escape(m['name'])}</title><style>{_STYLE}</style><h1>{html.escape(m['name'])}</h1>",
      f"<p>{m['documents']:,} samples, {m['bytes']:,} bytes of text, {m['tokens']:,} tokens ({html.escape(m['tokens_are'])}), {m['images']:,} images.</p>",
      *(f"<p>On {b['screens']:,} screens {b['right']:,} of {b['checked']:,} elements had their text's pixels in their boxes.</p>" for b in [y.get("text_boxes")] if b),
      "<h2>From source to shard</h2>", charts.bars(steps), "<h2>Removed, by rule</h2>", charts.bars(gone), *(report.card(y["reasoning"]) if "reasoning" in y else []),
      "<h2>Mixture</h2>", charts.table(
          ["group", "samples", "tokens", "share", "epochs", "written"],
          [[name, f"{g['documents']:,}", f"{g['tokens']:,}", f"{g['share']:.3f}", f"{g['epochs']:.2f}", f"{g['kept']:.0%}"] for name, g in m["groups"].items()])]
  if "long" in m:
    out += ["<h2>Long range</h2>", *_long_section(m["long"])]
  for label in _LABELS:
    out += [f"<h2>By {label}</h2>", charts.bars(by_count[label])]
  out += ["<h2>Length in characters</h2>", charts.bars({f"{2 ** (i - 1):,} to {2 ** i - 1:,}": octaves[i] for i in sorted(octaves)}), "<h2>Samples</h2>"]
  for name, shard in shards.items():
    out += [f"<h3>{html.escape(name)}</h3>"] + [f"<p>{html.escape(source)} ({html.escape(licence)})</p><pre>{html.escape(text)}</pre>" for source, licence, text in shard["examples"]]
  out.append("<h2>What was removed</h2>")
  for rule, examples in sorted(removed.items()):
    out += [f"<h3>{html.escape(rule)}</h3>"] * bool(examples) + [f"<p>{html.escape(source)}</p><pre>{html.escape(text)}</pre>" for source, text in examples[:2]]
  out += ["<h2>Config</h2>", f"<pre>{html.escape(json.dumps(m['config'], ensure_ascii=False, indent=1, default=list))}</pre>"]
  return "\n".join(out)
