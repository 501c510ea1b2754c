"""Every key of a stage's config, with its default. A stage file changes what it needs."""

import ml_collections
from ml_collections import config_dict


def stage() -> ml_collections.ConfigDict:
  """A locked ConfigDict: an unknown key raises and names the nearest known one."""
  c = ml_collections.ConfigDict()
  c.name = config_dict.placeholder(str)  # the stage's name in logs
  c.preset = config_dict.placeholder(str)  # a name of models.presets
  c.seed = 0
  c.steps = 1000
  c.init_from = ""  # a checkpoint (anything load_pretrained reads); "" starts from random weights
  c.objective = "lm"  # next-token loss; "dense" trains visual tokens to name what they show
  c.tokenizer = ""  # a tokenizer.json; "" is the one shipped with the package

  c.data = ml_collections.ConfigDict()
  c.data.rows = 8  # of a batch
  c.data.length = 512  # tokens a row
  c.data.tile_slots = 0  # tiles a row group may hold
  c.data.sources = ml_collections.ConfigDict()  # name -> {kind, share, ...}; see data.loader

  c.trainable = (".*",)  # regular expressions over parameter paths, e.g. "adapter/.*"
  c.optimizer = ml_collections.ConfigDict()
  c.optimizer.name = "adamw"  # or "muon": Muon on matrices, AdamW on the rest
  c.optimizer.learning_rate = 1e-3
  c.optimizer.muon_learning_rate = 0.02
  c.optimizer.b1 = 0.9
  c.optimizer.b2 = 0.95
  c.optimizer.eps = 1e-8
  c.optimizer.weight_decay = 0.1  # on matrices only
  c.optimizer.clip_norm = 1.0
  c.optimizer.lr_factors = ml_collections.ConfigDict()  # name -> {"path": regex, "factor": number}
  c.schedule = ml_collections.ConfigDict()
  c.schedule.kind = "wsd"  # "constant", "cosine", "linear" or "wsd" (warm-up, stable, decay)
  c.schedule.warmup = 50  # steps
  c.schedule.decay_share = 0.3  # of the steps, for wsd
  c.schedule.final = 0.1  # of the peak, at the end

  c.mesh = ml_collections.ConfigDict({"fsdp": -1})  # axis -> size; -1 takes the remaining devices
  c.log_every = 20
  c.checkpoint_every = 500
  c.keep = 1  # checkpoints kept
  return c.lock()


def sources(c: ml_collections.ConfigDict, **named) -> None:
  """Sets c.data.sources, e.g. sources(c, prose=dict(kind="documents", ...))."""
  with c.data.sources.unlocked():
    for key, value in named.items():
      c.data.sources[key] = ml_collections.ConfigDict(value)


def recipe() -> ml_collections.ConfigDict:
  """Stages by name, in order: {"config": "file.py:argument", "override": {"key.path": value}}."""
  return ml_collections.ConfigDict({"stages": {}, "evaluation": {}})
