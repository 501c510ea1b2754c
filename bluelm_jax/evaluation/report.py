"""What a finished recipe shows: a table on the terminal, report.html, report.json and a picture."""

import base64
import dataclasses
import html
import json
import pathlib

import cv2
import numpy as np

from bluelm_jax.data.tasks import screens
from bluelm_jax.training import goodput
from bluelm_jax.training import metrics

_STYLE = """
body { font: 15px/1.5 system-ui, "Noto Sans CJK SC", sans-serif; max-width: 1100px; margin: 24px auto; padding: 0 16px; color: #1f2329 }
table { border-collapse: collapse } td, th { padding: 3px 12px; border-bottom: 1px solid #ddd; text-align: left }
td.n { text-align: right; font-variant-numeric: tabular-nums } .ok { color: #07803f } .no { color: #b3261e }
figure { display: inline-block; margin: 6px; width: 170px; vertical-align: top } figcaption { font-size: 12px }
figure svg { width: 170px; border: 1px solid #ccc } .d { margin: 8px 0; padding: 8px 12px; background: #f4f5f7; border-radius: 8px }
.d i { color: #8a8f99; font-style: normal } .curves svg { margin-right: 12px }
"""


def table(results) -> str:
  """The figures and claims as plain text."""
  lines = [f"{'figure on held-out data':<48}{'value':>8}   95 % interval      n"]
  for f in results.figures:
    lines.append(f"{f.name:<48}{f.value:>8.3f}   [{f.low:.3f}, {f.high:.3f}]   {f.n:>5}")
  lines += ["", f"{'ability':<38}{'control':<36}{'ability':>8}{'control':>9}{'p':>10}"]
  for c in results.claims:
    lines.append(f"{c.ability:<38}{c.control:<36}{c.value:>8.3f}{c.control_value:>9.3f}{c.p:>10.2g}  {'SHOWN' if c.holds else 'NOT SHOWN'}")
  if results.comparisons:
    lines += ["", f"{'figure':<32}{'stage':<16}{'control':<16}{'stage':>8}{'control':>9}   difference, 95 % interval"]
  for c in results.comparisons:
    lines.append(
        f"{c.figure:<32}{c.stage:<16}{c.control:<16}{c.value:>8.3f}{c.control_value:>9.3f}   {c.value - c.control_value:+.3f} [{c.low:+.3f}, {c.high:+.3f}] ({c.better} is better)")
  if results.budget_points:
    lines += ["", f"{'thinking budget, tokens':<26}{'right':>8}   95 % interval    tokens of thought   cut short      n"]
  for p in results.budget_points:
    lines.append(f"{p.budget:<26}{p.value:>8.3f}   [{p.low:.3f}, {p.high:.3f}]   {p.thought:>17.1f}   {p.cut:>9.1%}   {p.n:>4}")
  return "\n".join(lines)


def write(results, stage_directories: dict[str, pathlib.Path], output: pathlib.Path) -> None:
  """Writes report.html, report.json and grounding.png into `output`."""
  curves = {name: metrics.read(d) for name, d in stage_directories.items()}
  values = {
      "figures": [dataclasses.asdict(f) for f in results.figures],
      "claims": [{**dataclasses.asdict(c), "holds": c.holds} for c in results.claims], "dialogues": results.dialogues,
      "comparisons": [dataclasses.asdict(c) for c in results.comparisons], "budgets": [dataclasses.asdict(p) for p in results.budget_points]}
  _put(output / "report.json", json.dumps(values, indent=1, ensure_ascii=False).encode())
  _put(output / "grounding.png", cv2.imencode(".png", picture(results.points))[1].tobytes())
  parts = [
      "<!doctype html><meta charset=utf-8><title>bluelm_jax report</title>", f"<style>{_STYLE}</style><h1>bluelm_jax: what this run learned</h1>",
      "<h2>Held-out figures</h2>", _figures(results), "<h2>Abilities against their controls</h2>",
      "<p>Shown means: better than the control at p &lt; 0.001 on at least 300 held-out items. Held-out screens come from page layouts never seen in training.</p>",
      _claims(results), _budgets(results.budget_points), _comparisons(results), "<h2>Loss</h2><div class=curves>", *(_curve(name, records) for name, records in curves.items()),
      "</div><h2>Wall time</h2>", _goodput(stage_directories),
      "<h2>Held-out screens</h2><p>Green box: the named element; dot: where the model points (green inside, red outside).</p>",
      *map(_screen, results.points[:18]), "<h2>Dialogues</h2>", *map(_dialogue, results.dialogues)]
  _put(output / "report.html", "\n".join(parts).encode())


def _put(path: pathlib.Path, data: bytes) -> None:
  """Whole or not at all."""
  temporary = path.with_name(path.name + ".tmp")
  temporary.write_bytes(data)
  temporary.rename(path)


def _figures(results):
  rows = "".join(f"<tr><td>{html.escape(f.name)}<td class=n>{f.value:.3f}<td class=n>[{f.low:.3f}, {f.high:.3f}]<td class=n>{f.n}" for f in results.figures)
  return f"<table><tr><th>figure<th>value<th>95 % interval<th>items{rows}</table>"


def _claims(results):
  rows = ""
  for c in results.claims:
    verdict = "<b class=ok>shown</b>" if c.holds else "<b class=no>not shown</b>"
    rows += f"<tr><td>{html.escape(c.ability)}<td>{html.escape(c.control)}<td class=n>{c.value:.3f}<td class=n>{c.control_value:.3f}<td class=n>{c.p:.2g}<td class=n>{c.n}<td>{verdict}"
  return f"<table><tr><th>ability<th>control<th>ability<th>control<th>p<th>items<th>{rows}</table>"


def _comparisons(results):
  if not results.comparisons:
    return ""
  rows = ""
  for c in results.comparisons:
    clear = "" if c.low <= 0 <= c.high else "ok" if (c.low > 0) == (c.better == "higher") else "no"
    rows += (
        f"<tr><td>{html.escape(c.figure)}<td>{html.escape(c.stage)}<td>{html.escape(c.control)}<td class=n>{c.value:.3f}<td class=n>{c.control_value:.3f}"
        f"<td class='n {clear}'>{c.value - c.control_value:+.3f} [{c.low:+.3f}, {c.high:+.3f}]<td>{c.better}<td class=n>{c.n}")
  heads = "<th>figure<th>stage<th>control<th>stage<th>control<th>difference<th>better<th>items"
  return f"<h2>Stages against each other</h2><p>Differences with 95 % intervals, coloured where zero lies outside.</p><table><tr>{heads}{rows}</table>"


def _budgets(points) -> str:
  """Accuracy against the budget with its interval, and the thought that was used of it."""
  if not points:
    return ""
  x = lambda p: 40 + 400 * p.budget / max(points[-1].budget, 1)
  y = lambda share: 170 - 150 * share
  bars = "".join(f'<line x1="{x(p):.1f}" x2="{x(p):.1f}" y1="{y(p.low):.1f}" y2="{y(p.high):.1f}" stroke="#9bbcff" stroke-width="5"/>' for p in points)
  line = " ".join(f"{x(p):.1f},{y(p.value):.1f}" for p in points)
  marks = "".join(
      f'<circle cx="{x(p):.1f}" cy="{y(p.value):.1f}" r="4" fill="#1769ff"><title>{p.value:.1%} right, {p.thought:.1f} tokens of thought, {p.cut:.1%} cut short</title></circle>'
      f'<text x="{x(p):.1f}" y="186" font-size="11" text-anchor="middle">{p.budget}</text>' for p in points)
  scale = "".join(f'<text x="34" y="{y(s) + 4:.1f}" font-size="11" text-anchor="end">{s:.0%}</text><line x1="40" x2="440" y1="{y(s):.1f}" y2="{y(s):.1f}" stroke="#ddd"/>' for s in (0, 0.5, 1))
  rows = "".join(f"<tr><td class=n>{p.budget}<td class=n>{p.value:.3f}<td class=n>[{p.low:.3f}, {p.high:.3f}]<td class=n>{p.thought:.1f}<td class=n>{p.cut:.1%}<td class=n>{p.n}" for p in points)
  return (
      "<h2>Thinking within a budget</h2><p>Right answers to held-out reasoning questions when a thought is closed at so many tokens.</p>"
      f'<svg width="460" height="200">{scale}{bars}<polyline points="{line}" fill="none" stroke="#1769ff" stroke-width="1.5"/>{marks}</svg>'
      f"<table><tr><th>budget<th>right<th>95 % interval<th>tokens of thought<th>cut short<th>items{rows}</table>")


def _curve(name: str, records: list[dict]) -> str:
  """One loss curve as an SVG."""
  records = [r for r in records if "loss" in r]  # none where all steps of a line were left out
  if not records:
    return ""
  steps, losses = [r["step"] for r in records], [r["loss"] for r in records]
  low, high = min(losses), max(losses)
  points = " ".join(f"{20 + 220 * s / steps[-1]:.1f},{110 - 90 * (v - low) / (high - low or 1):.1f}" for s, v in zip(steps, losses))
  return (
      f'<svg width="250" height="140"><text x="20" y="14" font-size="13">{html.escape(name)}: {losses[0]:.2f} → {losses[-1]:.2f} in {steps[-1]} steps</text>'
      f'<polyline points="{points}" fill="none" stroke="#1769ff" stroke-width="1.5"/><line x1="20" y1="110" x2="240" y2="110" stroke="#999"/></svg>')


def _goodput(stage_directories: dict[str, pathlib.Path]) -> str:
  """Seconds of each kind by stage; what each kind is, on hovering."""
  heads = "".join(f'<th title="{html.escape(what)}">{kind}' for kind, what in goodput.KINDS.items())
  rows = ""
  for name, directory in stage_directories.items():
    seconds = goodput.read(directory)
    share = seconds["steps"] / max(sum(seconds.values()), 1e-9)
    rows += f"<tr><td>{html.escape(name)}<td class=n>{share:.1%}" + "".join(f"<td class=n>{s:.1f} s" for s in seconds.values())
  return f"<table><tr><th>stage<th>goodput{heads}{rows}</table>"


def _screen(point: dict) -> str:
  image = point["image"]
  h, w = image.shape[:2]
  data = base64.b64encode(cv2.imencode(".webp", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))[1].tobytes()).decode()
  l, t, r, b = (v * s for v, s in zip(point["box"], (w, h, w, h)))
  marks = f'<rect x="{l:.0f}" y="{t:.0f}" width="{r - l:.0f}" height="{b - t:.0f}" fill="none" stroke="#07b155" stroke-width="3"/>'
  if at := screens.parse_point(point["reply"]):
    marks += f'<circle cx="{at[0] * w:.0f}" cy="{at[1] * h:.0f}" r="7" fill="{"#07b155" if point["hit"] else "#e5383b"}" stroke="#fff" stroke-width="2"/>'
  caption = html.escape(f"{point['label']}: {point['reply']}")
  return f'<figure><svg viewBox="0 0 {w} {h}"><image href="data:image/webp;base64,{data}" width="{w}" height="{h}"/>{marks}</svg><figcaption>{caption}</figcaption></figure>'


def _dialogue(d: dict) -> str:
  reply = html.escape(d["reply"]).replace("&lt;think&gt;", "<i>&lt;think&gt;").replace("&lt;/think&gt;", "&lt;/think&gt;</i> ")
  mode = {"none": "at once", "short": "thinking briefly", "long": "thinking"}[d["mode"]]
  return f"<div class=d><b>{html.escape(d['question'])}</b> <small>({mode})</small><br>{reply}<br><small>truth: {html.escape(d['truth'])}</small></div>"


def picture(points: list[dict], screens_shown: int = 7) -> np.ndarray:
  """BGR image of the first screens side by side: each named element's box, and a line from it to the predicted point."""
  by_screen = {}
  for p in points:
    by_screen.setdefault(p["screen"], []).append(p)
  panels = []
  for asked in list(by_screen.values())[:screens_shown]:
    panel = cv2.cvtColor(asked[0]["image"], cv2.COLOR_RGB2BGR)
    h, w = panel.shape[:2]
    for p in asked:
      color = (85, 177, 7) if p["hit"] else (59, 56, 229)
      l, t, r, b = (round(v * s) for v, s in zip(p["box"], (w, h, w, h)))
      cv2.rectangle(panel, (l, t), (r, b), color, 2)
      if at := screens.parse_point(p["reply"]):
        at = round(at[0] * w), round(at[1] * h)
        cv2.line(panel, ((l + r) // 2, (t + b) // 2), at, color, 1, cv2.LINE_AA)
        cv2.circle(panel, at, 7, (255, 255, 255), -1, cv2.LINE_AA)
        cv2.circle(panel, at, 5, color, -1, cv2.LINE_AA)
    panels += [panel, np.full((h, 8, 3), 255, np.uint8)]
  return np.concatenate(panels[:-1], axis=1)
