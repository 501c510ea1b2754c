"""Makes a data set from raw sources; again, it goes on where it stopped.

  python -m bluelm_jax.prepare --config=configs/data/docs.py:DIR_OF_DOCUMENTS --output=DIR
  python -m bluelm_jax.prepare --config=... --output=gs://BUCKET/DIR -- --runner=DataflowRunner --project=...   # Beam's own options
"""

import logging

from absl import flags
from ml_collections import config_flags

from bluelm_jax import door

_CONFIG = config_flags.DEFINE_config_file("config", None, "The data set's config.", lock_config=True)
_OUTPUT = flags.DEFINE_string("output", None, "Where shards, manifest.json and card.html go.")


def main(argv):
  from bluelm_jax.pipeline import local

  if not any(option.startswith("--runner") for option in argv[1:]):
    local.prepare()  # its processes import what they need while this one does
  logging.disable(logging.WARNING)  # Beam warns of every cloud's library that is not installed
  from bluelm_jax.pipeline import run

  logging.disable(logging.NOTSET)
  manifest = run.run(_CONFIG.value, _OUTPUT.value, argv[1:])
  print(f"{manifest['documents']:,} samples and {manifest['tokens']:,} tokens in {len(manifest['shards'])} shards; see {_OUTPUT.value}/card.html")


if __name__ == "__main__":
  door.run(main, required=("config", "output"), rest=True)
