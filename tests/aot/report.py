"""Everything that compiles without a chip, in one file: the kernels' grid and the shipped layouts.

  make aot                                               # all of it
  python -m tests.aot.report joint_4k:h100_8 [kernels]   # these anew

What was found lies in report.json, each part with its commit; REPORT.md shows it. Each layout is compiled in a process of its own, as
a compiler keeps its memory.
"""

import importlib.metadata
import json
import os
import pathlib
import re
import subprocess
import sys

from tests.bench import machine

FOLDER = pathlib.Path(__file__).parent
FOUND = FOLDER / "report.json"
_PACKAGES = ("jax", "libtpu", "jax-cuda12-plugin", "nvidia-cuda-nvcc-cu12")
_ENVIRONMENT = {**os.environ, "JAX_PLATFORMS": "cpu"}


def layouts() -> list[tuple[str, str, str]]:
  """(name, config, topology) of every production layout under configs/layouts."""
  from bluelm_jax.training import defaults

  found = []
  for path in sorted((machine.ROOT / "configs/layouts").glob("*.py")):
    for name, layout in defaults.module(path).LAYOUTS.items():
      found.append((f"{path.stem}:{name}", f"configs/layouts/{path.name}:{name}", layout["topology"]))
  return found


def one(config_path: str, name: str) -> dict:
  """Compiles a layout and returns its figures; {"refused": ...} where it does not fit."""
  import jax

  from bluelm_jax.sharding import chips
  from bluelm_jax.training import defaults
  from bluelm_jax.training import memory
  from bluelm_jax.training import stage
  from bluelm_jax.training.precompile import compile as compile_lib
  from bluelm_jax.training.precompile import estimate
  from bluelm_jax.training.precompile import report
  from bluelm_jax.training.precompile import topology

  config, devices = defaults.load(config_path), topology.devices(name)
  try:
    compiled = compile_lib.compile_stage(config, devices)
  except jax.errors.JaxRuntimeError as e:
    if "RESOURCE_EXHAUSTED" not in str(e):
      raise
    return {"refused": str(e).splitlines()[0]}
  model_config = stage.described_model(config)
  found = estimate.estimate(compiled, config, model_config, chips.chip(devices[0].device_kind))
  budget = memory.budget(config, compiled.described.mesh)
  mesh = ", ".join(f"{axis} {size}" for axis, size in compiled.described.mesh.shape.items() if size > 1)
  return {
      "mesh": mesh, "rows": config.data.rows, "remat": config.execution.remat, "peak": found.memory.peak, "budget": budget.total,
      "available": found.memory.available, "step": found.step, "mfu": found.mfu, "rate": found.tokens / found.step / found.devices,
      "flops": found.flops.total / found.tokens, "binding": found.binding, "seconds": compiled.seconds,
      "text": report.text(report.sections(found, budget, f"{config.name} on {name}", compiled.seconds))}


def kernels() -> str:
  """Runs tests/aot with the whole grid; returns pytest's last line, and the names of failures."""
  command = [sys.executable, "-m", "pytest", "-n", "2", "tests/aot", "--durations=0"]
  done = subprocess.run(command, env={**_ENVIRONMENT, "AOT_WHOLE": "1"}, capture_output=True, text=True, cwd=machine.ROOT)
  lines = done.stdout.splitlines()
  return "\n".join([*(line for line in lines if line.startswith(("FAILED", "ERROR"))), lines[-1]])


def page(found: dict[str, dict]) -> str:
  """REPORT.md of what was found: {"kernels": {"line", "by"}, layout: {what `one` gives, "by"}}."""
  gib = lambda n: f"{n / 2**30:.1f}"
  lines = [
      "# What compiles without a chip", "", "Written by `make aot`, of `report.json`.",
      "Nothing ran: memory is the compiler's own figure, times and MFU are estimates (roofline; the assumed shares of each peak",
      "stand below every layout).", "", "## Kernels, rings and the sharded step: `AOT_WHOLE=1 pytest tests/aot`", "",
      f"`{found['kernels']['line']}` ({found['kernels']['by']})", "", "## Production layouts", "",
      "| layout | mesh | rows, remat | HBM a device, GiB: peak | predicted | available | FLOPs a token | step, ms (estimate) | tokens/s a chip (estimate) | MFU (estimate) | bound by | compiled in |",
      "|---|---|---|---|---|---|---|---|---|---|---|---|"]
  shown = {name: found[name] for name, *_ in layouts() if name in found}
  for name, f in shown.items():
    if "refused" in f:
      lines.append(f"| {name} | {f['refused']} |" + " |" * 10)
      continue
    lines.append(
        f"| {name} | {f['mesh']} | {f['rows']}, {f['remat']} | {gib(f['peak'])} | {gib(f['budget'])} ({100 * (f['budget'] / f['peak'] - 1):+.0f} %) | "
        f"{gib(f['available'])} | {f['flops'] / 1e9:.1f} G | {1e3 * f['step']:.0f} | {f['rate']:,.0f} | {100 * f['mfu']:.1f} % | {f['binding']} | {f['seconds']:.0f} s |")
  lines += ["", "32K against 4K on the same chips, MFU against MFU (a token of 32K costs more FLOPs of attention):", ""]
  for name, f in shown.items():
    short = shown.get("joint_4k:" + name.removeprefix("long_32k:"))
    if name.startswith("long_32k:") and short and "mfu" in f and "mfu" in short:
      lines.append(f"- {name}: {f['mfu'] / short['mfu']:.3f}")
  for name, f in shown.items():
    lines += ["", f"### {name}", "", f"{f['by']}.", *(["", "```", re.sub(r"[ \t]+\n", "\n", f["text"]), "```"] if "text" in f else [])]
  return "\n".join(lines) + "\n"


def main():
  if sys.argv[1:2] == ["one"]:
    print(json.dumps(one(*sys.argv[2:])))
    return
  names, asked = ["kernels", *(name for name, *_ in layouts())], sys.argv[1:]
  if unknown := set(asked) - set(names):
    sys.exit(f"{', '.join(sorted(unknown))} is unknown; use {', '.join(names)}")
  found = json.loads(FOUND.read_text()) if FOUND.exists() else {}
  by = f"{machine.line()}; {', '.join(f'{p} {importlib.metadata.version(p)}' for p in _PACKAGES)}"
  for name, config, slice_name in layouts():
    if asked and name not in asked:
      continue
    command = [sys.executable, "-m", "tests.aot.report", "one", config, slice_name]
    done = subprocess.run(command, env=_ENVIRONMENT, capture_output=True, text=True, cwd=machine.ROOT)
    if done.returncode:
      sys.exit(f"{name}: {done.stderr[-2000:]}")
    found[name] = json.loads(done.stdout.splitlines()[-1]) | {"by": by}
    FOUND.write_text(json.dumps(found, indent=1) + "\n")
    print(f"{name}: {found[name].get('refused') or found[name]['text']}", file=sys.stderr, flush=True)
  if not asked or "kernels" in asked:
    found["kernels"] = {"line": kernels(), "by": by}
    FOUND.write_text(json.dumps(found, indent=1) + "\n")
  if "kernels" in found:
    (FOLDER / "REPORT.md").write_text(page(found))


if __name__ == "__main__":
  main()
