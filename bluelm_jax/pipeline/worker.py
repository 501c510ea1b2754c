"""A process of the local runner that says only what goes wrong; Beam's own tells its life in 25 lines."""

import logging
import os
import sys

logging.disable(logging.WARNING)  # Beam warns of every cloud's library that is not installed
from apache_beam.runners.worker import sdk_worker_main

if __name__ == "__main__":
  logging.disable(logging.INFO)
  logging.getLogger(sdk_worker_main.__name__).setLevel(logging.ERROR)  # it warns of a folder that only containers have
  sdk_worker_main.main(sys.argv)
  sys.stdout.flush()
  os._exit(0)  # what it did lies in files; taking the interpreter down takes half a second
