"""Modules in processes of their own, as users run them, with one device.

The processes are forked from one that has imported what most of them need, which would be most of their time.
"""

import multiprocessing
import os
import pathlib
import runpy
import subprocess
import sys
import tempfile

from tests import hurry

ROOT = pathlib.Path(__file__).parents[1]
ENVIRONMENT = {**os.environ, "XLA_FLAGS": hurry.FLAGS}

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["bluelm_jax.inference.terminal", "bluelm_jax.inference.conversation", "bluelm_jax.interop.compose", "bluelm_jax.door"])


def run(module: str, *arguments) -> subprocess.CompletedProcess:
  """Waits for `python -m module`, whose output is text."""
  with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
    argv = [module, *map(str, arguments)]
    process = _CONTEXT.Process(target=_become, args=(argv, f"/proc/{os.getpid()}/fd/{out.fileno()}", f"/proc/{os.getpid()}/fd/{err.fileno()}"))
    process.start()
    process.join(400)
    if process.exitcode is None:
      process.kill()
      process.join()
      raise subprocess.TimeoutExpired(argv, 400)
    out.seek(0), err.seek(0)
    return subprocess.CompletedProcess(argv, process.exitcode, out.read().decode(), err.read().decode())


def _become(argv: list[str], *outputs: str):
  os.environ.clear()
  os.environ.update(ENVIRONMENT)  # before any device is asked for; the server that forks may have another
  for number, path in enumerate(outputs, 1):
    os.dup2(os.open(path, os.O_WRONLY), number)
  os.chdir(ROOT)
  sys.argv = argv
  runpy.run_module(argv[0], run_name="__main__", alter_sys=True)
