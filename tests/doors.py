"""Modules in processes of their own, as users run them, with one device."""

import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[1]
ENVIRONMENT = {**os.environ, "XLA_FLAGS": "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"}  # most programs run once or twice


def run(module: str, *arguments) -> subprocess.CompletedProcess:
  """Waits for `python -m module`, whose output is text."""
  command = [sys.executable, "-m", module, *map(str, arguments)]
  return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=400, env=ENVIRONMENT)
