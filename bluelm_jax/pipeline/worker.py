"""Forks a worker of the local runner for each line that it reads. They say only what goes wrong; Beam's own tell their life in 25 lines."""

import gc
import json
import logging
import os
import sys

logging.disable(logging.WARNING)  # Beam warns of every cloud's library that is not installed
from apache_beam.runners.worker import sdk_worker_main

from bluelm_jax.pipeline import run as _  # imported once for all


def _work(name: str, control: str, options: str) -> None:
  """Does what the runner at `control` asks for, until that ends."""
  logging.disable(logging.INFO)
  logging.getLogger(sdk_worker_main.__name__).setLevel(logging.ERROR)  # it warns of a folder that only containers have
  os.environ.update(WORKER_ID=name, CONTROL_API_SERVICE_DESCRIPTOR=control, PIPELINE_OPTIONS=options)
  sdk_worker_main.main([])


def main():
  gc.freeze()  # what is imported stays
  for line in sys.stdin:
    if not os.fork():
      sys.stdin.close()
      return _work(*json.loads(line))
  while True:
    try:
      os.wait()
    except ChildProcessError:
      return


if __name__ == "__main__":
  main()
