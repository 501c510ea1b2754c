"""Proxy runs for a fitted mixture: a small text model on mixtures of a data set's groups, drawn around their natural shares.

  python -m bluelm_jax.proxies --config=configs/proxies.py --data=DIR

DIR is what prepare left, with holdout, and mixture.by source, language or domain. Then prepare again, with
--config.mixture.rule=fitted --config.mixture.runs=DIR/runs.json. Of conversations: --config.source.kind=conversations.
A mixing law over n groups has n + 1 numbers to fit: some times as many runs make it sure (RegMix, arXiv 2407.01492).
"""

import pathlib

from bluelm_jax.training import defaults
from bluelm_jax.training import proxies


def get_config(size: str = "miniature"):
  c = proxies.config()
  with c.unlocked():
    c.stage = defaults.load(f"{pathlib.Path(__file__).parent}/stages/text.py:{size}")
  c.stage.steps, c.stage.checkpoint_every = 200, 100
  c.stage.evaluate.batches = 16
  c.stage.data.sources, c.stage.data.overlong = {}, "split"
  return c
