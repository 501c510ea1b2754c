"""Every key of a stage's config, with its default. A stage file changes what it needs."""

import importlib.util
import pathlib

import ml_collections
from ml_collections import config_dict


def stage() -> ml_collections.ConfigDict:
  """A locked ConfigDict: an unknown key raises and names the nearest known one."""
  c = ml_collections.ConfigDict()
  c.name = config_dict.placeholder(str)  # the stage's name in logs
  c.preset = config_dict.placeholder(str)  # a name of models.presets; "" takes the model and tokenizer of init_from
  c.yarn = 1.0  # YaRN stretches the context to this many times the preset's; with preset "", to so many times that of init_from before any YaRN, and 1 leaves it
  c.seed = 0
  c.steps = 1000  # of training; batches where the objective is "prune" or "teach"
  c.init_from = ""  # a checkpoint (anything load_pretrained reads); "" starts from random weights. A recipe sets it after its first stage
  c.init_vision = ""  # a checkpoint of a vision tower alone, whose weights go before those of init_from; "" takes none
  # "lm" predicts the next token, "dense" trains visual tokens to name what they show, "distill" follows a teacher, too;
  # "prune" trains nothing and cuts the model of init_from down to the preset; "teach" stores what a teacher says of the batches.
  c.objective = "lm"
  c.distill = ml_collections.ConfigDict()  # see training.losses.distilled_losses
  c.distill.teacher = ""  # a checkpoint (anything load_pretrained reads) with the student's tokenizer; in a recipe, also the name of an earlier stage
  c.distill.stored = ""  # or what it said of this stage's batches: the --workdir of configs/stages/teach.py
  c.distill.top_k = 32  # likeliest tokens that are stored of each position
  c.distill.temperature = 1.0
  c.distill.share = 0.5  # of the divergence from the teacher in the loss; the rest is cross-entropy
  c.tokenizer = ""  # a tokenizer.json; "" is the one shipped with the package

  c.data = ml_collections.ConfigDict()
  c.data.rows = 8  # of a batch
  c.data.length = 512  # tokens a row
  c.data.tile_slots = 0  # tiles a row group may hold
  c.data.accumulate = ((0, 1),)  # ((step, batches), ...): from that step on an update is made of so many batches, rows each
  c.data.overlong = "truncate"  # examples longer than a row; or "drop" them, or "split" them where no image is cut
  c.data.workers = 0  # processes that read examples ahead; 0 reads in a thread of the trainer
  c.data.max_bad_share = 0.01  # of the examples; more that cannot be used stop the run. They are listed in the workdir's quarantine.jsonl
  c.data.sources = ml_collections.ConfigDict()  # name -> {kind, share, ...}; see data.loader. Steps of a share count full batches

  c.trainable = (".*",)  # regular expressions over parameter paths, e.g. "adapter/.*"
  c.optimizer = ml_collections.ConfigDict()
  c.optimizer.name = "adamw"  # or Muon on matrices and AdamW on the rest: "muon" as optax has it, "moonlight" with updates as large as AdamW's
  c.optimizer.learning_rate = 1e-3
  c.optimizer.muon_learning_rate = 0.02  # of the matrices with "muon"; "moonlight" has one rate for all
  c.optimizer.b1 = 0.9
  c.optimizer.b2 = 0.95
  c.optimizer.eps = 1e-8
  c.optimizer.weight_decay = 0.1
  c.optimizer.decayed = ()  # regular expressions over parameter paths; () is all matrices, with "muon" those that Muon updates
  c.optimizer.moment_dtype = ""  # "bfloat16" or "float32", of all moments; "" is the parameters'
  c.optimizer.clip_norm = 1.0
  c.optimizer.lr_factors = ml_collections.ConfigDict()  # name -> {"path": regex, "factor": number}, and "layer_decay" for rates that fall towards the input
  c.schedule = ml_collections.ConfigDict()
  c.schedule.kind = "wsd"  # "constant", "cosine", "linear", "wsd" (warm-up, stable, decay) or "multistep" (down at 80 % and 90 %)
  c.schedule.warmup = 50  # steps
  c.schedule.decay_share = 0.3  # of the steps, for wsd
  c.schedule.final = 0.1  # of the peak, at the end
  c.schedule.horizon = 0  # steps of the whole decay, which several stages may share; 0 ends it with this stage
  c.schedule.offset = 0  # steps of the decay that earlier stages made
  c.schedule.continues = False  # in a recipe: goes on with the decay of the stage before; offset, and horizon if 0, are counted

  c.spikes = ml_collections.ConfigDict()  # steps whose update is left out; see training.spikes. Those without a finite loss or gradient always are
  c.spikes.factor = 10.0  # gradient norms over so many times their running mean are left out too; 0 leaves out none
  c.spikes.patience = 5  # such steps in a row send the run back to its last checkpoint, to go on with the data behind them
  c.spikes.rollbacks = 3  # without progress; then the run stops

  c.mesh = ml_collections.ConfigDict({"data": 1, "fsdp": -1, "expert": 1, "context": 1, "tensor": 1})  # -1 takes the remaining devices
  c.zero = 3  # what fsdp ranks divide (ZeRO, arXiv 1910.02054): 3 weights, gradients and moments; 2 all but the weights
  c.loss_chunks = 1  # in which the logits of a large vocabulary are made; more save memory and cost one more product with the output table
  c.layout = "striped"  # of rows over context ranks: "striped", "zigzag" or "none"; see kernels.attention.layouts
  c.execution = ml_collections.ConfigDict({"attention": "", "context_parallel": "", "remat": ""})  # "" is the preset's; see models.config
  c.evaluate = ml_collections.ConfigDict()  # the loss on held-out data, in evaluation.jsonl and, as eval/..., among the metrics
  c.evaluate.every = 0  # steps; the last is evaluated too. 0 never evaluates
  c.evaluate.batches = 8  # of data.rows rows, always the same; fewer where the sources end before (epochs, caps)
  c.evaluate.sources = ml_collections.ConfigDict()  # as data.sources, of shards that are not trained on
  c.log_every = 20
  c.watch = ml_collections.ConfigDict()
  c.watch.every = 0  # steps between looks at norms, activations and learning rates; see training.watch. 0 takes none
  c.watch.groups = ml_collections.ConfigDict()  # name -> regular expression over parameter paths, or several; {} is watch.GROUPS
  c.checkpoint_every = 500
  c.keep = 2  # checkpoints kept; the one before stands in for a damaged one
  c.keep_every = 0  # steps whose multiples are kept for good if a checkpoint is saved there; 0 keeps none
  c.export_every = 0  # steps between checkpoints that are also written in HuggingFace form, to export/STEP, as the last is then; 0 writes none
  return c.lock()


def fill(node: ml_collections.ConfigDict, **named) -> None:
  """Adds named entries to an open part of a config, e.g. fill(c.data.sources, prose=dict(kind="documents", ...))."""
  with node.unlocked():
    for key, value in named.items():
      node[key] = ml_collections.ConfigDict(value) if isinstance(value, dict) else value


def look(c: ml_collections.ConfigDict, evaluate: int, watch: int = 100) -> None:
  """Norms every `watch` steps, and every `evaluate` steps the loss on held-out data: of each source as much, from data/held-out/ for data/."""
  c.watch.every, c.evaluate.every, c.evaluate.sources = watch, evaluate, {}
  for name, s in c.data.sources.items():
    fill(c.evaluate.sources, **{name: dict(kind=s.kind, share=1.0, path=s.path.replace("data/", "data/held-out/", 1))})


def regroup(c: ml_collections.ConfigDict, rows: int) -> None:
  """So many rows at a time, and as many batches more or fewer to a step: what an update is made of, and when shares change, stays.

  Raises:
    ValueError: a step has no whole number of such batches.
  """
  before = c.data.rows
  if any(count * before % rows for _, count in c.data.accumulate):
    raise ValueError(f"data.rows {rows} does not divide the {before} rows of a batch times data.accumulate {c.data.accumulate}; use a divisor")
  c.data.accumulate = tuple((step, count * before // rows) for step, count in c.data.accumulate)
  for s in c.data.sources.values():
    if not isinstance(s.share, (int, float)):  # its knots count batches
      s.share = tuple((batch * before // rows, value) for batch, value in s.share)
  c.evaluate.batches = max(c.evaluate.batches * before // rows, 1)
  c.data.rows = rows


def load(spec) -> ml_collections.ConfigDict:
  """The config of "path/to/file.py[:argument]"."""
  path, _, argument = str(spec).partition(":")
  found = module(path)
  return found.get_config(argument) if argument else found.get_config()


def module(path):
  """A config file as a module."""
  if not pathlib.Path(path).is_file():
    raise ValueError(f"no config file at {path}; check the path")
  spec = importlib.util.spec_from_file_location(pathlib.Path(path).stem, path)
  found = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(found)
  return found


def recipe(file: str, stages: tuple[str, ...], size: str) -> ml_collections.ConfigDict:
  """Whole stage configs by name, from the `stages/` folder beside the recipe's own, their order and starts, and "evaluation".

  `evaluation` is for the evaluate door; its `before` and `after` are the stages whose figures are shown, `comparisons`
  sets stages against each other (see evaluation.stages).

  Args:
    stages: names of files; or "name=file" or "name=file:argument", where a file serves several stages or wants another argument than `size`.
  """
  folder = pathlib.Path(file).absolute().parents[1] / "stages"
  split = [(name, *(found or name).partition(":")[::2]) for name, _, found in (s.partition("=") for s in stages)]
  c = ml_collections.ConfigDict({"order": tuple(name for name, _, _ in split), "stages": {}, "evaluation": {}})  # a ConfigDict sorts its keys
  c.starts = ml_collections.ConfigDict()  # stage -> the earlier stage it starts from, "" for random weights; others start from the stage before
  for name, stem, argument in split:
    c.stages[name] = load(f"{folder}/{stem}.py:{argument or size}")
    c.stages[name].name = name
  return c
