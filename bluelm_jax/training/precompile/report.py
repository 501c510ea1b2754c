"""A compiled step for people: lines for the terminal, a page for the browser."""

import dataclasses
import html
import pathlib
import re

from bluelm_jax.sharding.chips import Chip
from bluelm_jax.training.memory import Budget
from bluelm_jax.training.precompile.estimate import ATTENTION
from bluelm_jax.training.precompile.estimate import Estimate
from bluelm_jax.training.precompile.estimate import LINKS
from bluelm_jax.training.precompile.estimate import MEMORY
from bluelm_jax.training.precompile.estimate import VISION_ATTENTION

_STYLE = "body{font:15px/1.5 system-ui;max-width:60em;margin:2em auto;padding:0 1em}table{border-collapse:collapse;margin:.5em 0 1.5em}td,th{padding:.2em .9em;border-bottom:1px solid #ddd;text-align:right}td:first-child,th:first-child{text-align:left}"


def budgets(found: dict[str, Budget], chip: Chip) -> tuple[str, list[list[str]]]:
  """A heading and a table of predictions by choice."""
  head = ["remat, ZeRO", "parameters", "gradients", "their sums", "optimizer", "cast weights", "saved activations", "loss", "layer", "total", "fits"]
  rows = [[name, *(_gib(n) for n in dataclasses.astuple(b)), _gib(b.total), "yes" if b.total <= chip.memory else "NO"] for name, b in found.items()]
  return f"HBM of a device, predicted; available {_gib(chip.memory)}", [head, *rows]


def _gib(n: float) -> str:
  return f"{n / 2**30:.2f} GiB"


def sections(e: Estimate, budget: Budget, title: str, seconds: float) -> list[tuple[str, list[list[str]]]]:
  """(heading, rows of cells) each; the first row of a table is its head."""
  per_token = lambda f: f"{f / e.tokens / 1e9:.2f} G"
  m, f = e.memory, e.flops
  return [
      (title, [
          ["parameters", f"{e.params:,}"], ["devices", str(e.devices)], ["tokens a step", f"{e.tokens:,}"],
          ["tiles a step", f"{e.tiles:,}"], ["compiled in", f"{seconds:.0f} s"]]),
      ("FLOPs a token of the batch (model FLOPs; causal attention at half)", [
          ["LLM", per_token(f.llm)], ["LLM attention", per_token(f.attention)], ["ViT", per_token(f.vision)],
          ["ViT attention", per_token(f.vision_attention)], ["adapter", per_token(f.adapter)], ["total", per_token(f.total)],
          ["total without the ViT", per_token(f.total - f.vision - f.vision_attention)],
          ["computed again (not counted)", per_token(e.recomputed.total)]]),
      ("HBM of a device, by the compiler", [
          ["parameters", _gib(m.params)], ["optimizer", _gib(m.optimizer)], ["batch", _gib(m.batch)],
          ["activations, gradients, gathered weights", _gib(m.temporary)], ["peak", _gib(m.peak)], ["available", _gib(m.available)],
          ["peak predicted without compiling", _gib(budget.total)],
          ["fits", "yes" if m.fits else "NO"]]),
      ("Collectives of a step (seconds: estimate)", [["kind", "form", "count", "MiB a device", "beside compute", "ms"]] + [
          [t.kind, t.form, str(t.count), f"{t.bytes / 2**20:.1f}", "yes" if t.overlapped else "no", f"{1e3 * t.seconds:.1f}"] for t in e.transfers]),
      ("Roofline (estimate)", [
          ["arithmetic", f"{1e3 * e.arithmetic:.0f} ms"], ["memory traffic", f"{1e3 * e.traffic:.0f} ms"],
          ["exposed transfers", f"{1e3 * e.exposed:.0f} ms"], ["step", f"{1e3 * e.step:.0f} ms"],
          ["tokens/s a device", f"{e.tokens / e.step / e.devices:,.0f}"], ["MFU", f"{100 * e.mfu:.1f} %"], ["bound by", e.binding],
          ["assumed shares of the peak", f"products {e.chip.products}, attention {ATTENTION} in visited blocks, ViT attention {VISION_ATTENTION}, HBM {MEMORY}, links {LINKS}"]]),
  ]


def text(parts) -> str:
  lines = []
  for heading, rows in parts:
    widths = [max(len(row[i]) for row in rows if i < len(row)) for i in range(max(map(len, rows), default=0))]
    lines += ["", heading] + ["  " + "  ".join(cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths))) for row in rows]
  return "\n".join(lines[1:])


def page(parts, path) -> None:
  """One HTML file without references to others."""
  body = ""
  for heading, rows in parts:
    cells = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    body += f"<h2>{html.escape(heading)}</h2><table>{cells}</table>"
  path = pathlib.Path(path)
  temporary = path.with_name(path.name + ".tmp")
  temporary.write_text(f"<!doctype html><meta charset=utf-8><title>precompile</title><style>{_STYLE}</style>{body}")
  temporary.rename(path)


def largest_buffers(message: str, count: int = 8) -> list[str]:
  """The allocations that an out-of-memory message of XLA lists, largest first, a line each."""
  found = []
  for block in re.split(r"\n\s*\d+\. ", message)[1:]:
    size = re.search(r"Size:\s*([^\n]+)", block)
    name = re.search(r'op_name="([^"]*)"', block) or re.search(r"Operator:\s*([^\n]+)", block)
    shape = re.search(r"Shape:\s*([^\n]+)", block)
    if size:
      found.append("  ".join(x[1].strip() for x in (size, shape, name) if x))
  return found[:count]
