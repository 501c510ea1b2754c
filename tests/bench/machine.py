"""What a benchmark's table must say of where it was made."""

import datetime
import os
import pathlib
import platform
import subprocess

import jax

ROOT = pathlib.Path(__file__).parents[2]
CORES = os.cpu_count()


def line() -> str:
  """Date, commit, processor, cores and jax version."""
  commit = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
  with open("/proc/cpuinfo") as f:
    cpu = next((text.split(":")[1].strip() for text in f if text.startswith("model name")), platform.machine())
  return f"{datetime.date.today()}, commit {commit}, {cpu}, {CORES} cores, jax {jax.__version__}"
