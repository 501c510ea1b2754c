"""Every key of a data set's config, with its default."""

import os

import ml_collections
from ml_collections import config_dict

from bluelm_jax.pipeline.gui import checks
from bluelm_jax.pipeline.ingest import read

RULES = ("gopher", "repetition", "c4", "fineweb", "code")
BY = ("source", "language", "domain", "style", "all")
HOLDOUT_BY = ("page", "book")
REWRITINGS = ("paraphrase", "translate", "numbers", "reverse")
MIXTURES = ("natural", "temperature", "unimax", "fitted")


def dataset() -> ml_collections.ConfigDict:
  """What a data set is made of; a config file fills it."""
  c = ml_collections.ConfigDict()
  c.name = ""
  c.seed = 0  # of the order of records, of what a budget leaves out, and of the fitted mixture
  c.sources = ml_collections.ConfigDict()  # name -> kind, path, licence, and optionally package, language, domain; of questions check; of generated ones count, seed, levels
  c.block_bytes = 2_000_000  # raw bytes that one task reads
  c.max_unreadable = 0.01  # share of unreadable items at which the run stops

  c.languages = ("zh", "en")  # kept, and source code; () keeps all
  c.language_confidence = 0.5
  c.quality = ml_collections.ConfigDict()
  c.quality.prose_lines = False  # C4's line filter: only lines that end a sentence
  c.quality.own_script = False  # of a page: only lines in its own script; a translation often keeps whole paragraphs of the original
  c.quality.unique_lines = False  # of a page: a line stays where it stands first, and none that holds what a held-out line says
  c.quality.rules = RULES  # of documents without images; the last is of source code
  c.quality.scorer = ""  # "module:function" from a list of texts to scores
  c.quality.min_score = 0.0
  c.ascii_signs = False  # typographic quotation marks, dashes and ellipses become ASCII, outside Chinese
  c.decontaminate = ()  # evaluation sets: ArrayRecord shards or JSON files
  c.classifier = ""  # "module:function" from a list of texts to domains, in place of the rules

  c.gui = ml_collections.ConfigDict()  # questions about screens, which become conversations
  c.gui.tasks = ml_collections.ConfigDict()  # name -> weight, see gui/questions.py; without any, screens stay without words
  c.gui.seed = 0
  c.gui.turns = 4  # at most
  c.gui.other_language = 0.2  # share of the screens that are asked about in the other of Chinese and English
  c.gui.steps = 1000  # of a coordinate, which is written as 000-999

  c.dedup = ml_collections.ConfigDict()
  c.dedup.similarity = 0.7  # Jaccard, of sets of 5-grams of words
  c.dedup.image_bits = 4  # of 64, by which two images' hashes may differ

  c.reasoning = reasoning()

  c.holdout = 0  # every n-th page, by the hash of its name, goes to the test split; 0 has none
  c.holdout_by = "page"  # pages of one name, such as translations, go together; "book" keeps a book or repository together
  c.mixture = ml_collections.ConfigDict()
  c.mixture.by = "language"  # what groups are: source, language (code is one), domain, or of reasoning style; all is one group
  c.mixture.rule = "natural"
  c.mixture.temperature = 2.0
  c.mixture.max_epochs = 4.0  # unimax; 4 is nearly as good as fresh data (Muennighoff et al. 2023)
  c.mixture.tokens = 0  # tokens of the run that will use the data; more of a group are left out. 0 keeps all
  # fitted: {"shares": {group: share}, "loss": loss} of proxy runs, or the runs.json that python -m bluelm_jax.proxies made of them
  c.mixture.runs = config_dict.FieldReference((), field_type=object)
  c.max_bytes = 0  # longer documents are cut at ends of paragraphs; 0 cuts none; with join, only those longer than its samples
  c.join = ml_collections.ConfigDict()  # see join.py
  c.join.tokens = 0  # of the longest sample joined from documents of one repository or book, in their order; 0 joins none
  c.join.least = 0  # tokens: a document of so many stays alone and whole, and shorter samples are left out
  c.join.image_tokens = 800  # that an image counts
  c.join.far = 4096  # tokens beyond which the report of long range counts
  c.tokenizer = ""  # tokenizer.json that counts the tokens; "" is the shipped one
  c.packing_length = 0  # tokens of a row for which a packing plan is written, which a source of documents follows with packing="plan"; 0 writes none, and estimates tokens
  c.shard_bytes = 50_000_000
  return c


def reasoning() -> ml_collections.ConfigDict:
  """How paths to the answers of questions are found; read only where sources are of read.QUESTIONS."""
  r = ml_collections.ConfigDict()
  r.generator = g = ml_collections.ConfigDict()
  g.function = ""  # "module:function" from (prompts in the OpenAI form, n) to n texts a prompt; or else an endpoint:
  g.base_url = ""  # OpenAI-compatible, e.g. http://localhost:8000/v1
  g.model = ""
  g.api_key_env = ""  # the environment variable that holds the key; "" sends none
  g.concurrency = 16  # requests at a time of one worker process; prompts a call of a function
  g.timeout = 600.0  # seconds a request
  g.retries = 6  # after a timeout, 429 or 5xx
  g.backoff = 1.0  # seconds before the first retry, doubled each time
  g.temperature = 0.8
  g.max_tokens = 16384
  g.extra = ml_collections.ConfigDict()  # further fields of a request, e.g. top_p, seed, chat_template_kwargs
  r.rewrite = ()  # of REWRITINGS; of users' questions alone
  r.samples = 8  # paths a question
  r.check_seconds = 5.0  # after which math-verify, a scorer or a run of a program is killed
  r.agreement = 0.6  # share of the paths whose answers must be one for a majority
  r.pass_rate = (0.0, 1.0)  # questions with a lower or higher share of right paths are left out
  r.thought_tokens = (8, 16384)  # shorter and longer thoughts are left out
  r.long_tokens = 1024  # longer thoughts are of style long
  r.similarity = 0.8  # Jaccard, of 5-grams, at which two paths of a question are copies
  r.keep = 2  # right paths a question
  return r


_ONLY = {"check": ("questions",), "count": read.GENERATED, "seed": read.GENERATED, "levels": read.GENERATED}
for _kind, _keys in read.DRAWN.items():
  _ONLY.update({key: (*_ONLY.get(key, ()), _kind) for key in _keys})
_OPTIONAL = ("package", "language", "domain", *_ONLY)


def asks(c: ml_collections.ConfigDict) -> bool:
  """Whether the sources are questions, for which a generator finds paths to the answers."""
  return any(source["kind"] in read.QUESTIONS for source in c.sources.values())


def _check_reasoning(c: ml_collections.ConfigDict) -> None:
  r, g = c.reasoning, c.reasoning.generator
  if others := [name for name, source in c.sources.items() if source["kind"] not in read.QUESTIONS]:
    raise ValueError(f"source {others[0]!r} holds no questions and others do; make two data sets")
  if c.quality.unique_lines or c.join.tokens:
    raise ValueError("config.quality.unique_lines and config.join are for documents; leave them as they are where questions are asked")
  if bool(g.function) == bool(g.base_url) or bool(g.base_url) != bool(g.model):
    raise ValueError("config.reasoning.generator needs a function, or else a base_url and a model")
  if g.api_key_env and g.api_key_env not in os.environ:
    raise ValueError(f"the environment has no {g.api_key_env}, which config.reasoning.generator.api_key_env names; export it")
  for key, value, good in (
      ("samples", r.samples, r.samples >= 1), ("keep", r.keep, r.keep >= 1), ("generator.concurrency", g.concurrency, g.concurrency >= 1),
      ("generator.retries", g.retries, g.retries >= 0), ("generator.timeout", g.timeout, g.timeout > 0), ("check_seconds", r.check_seconds, r.check_seconds > 0),
      ("agreement", r.agreement, 0 < r.agreement <= 1), ("similarity", r.similarity, 0 < r.similarity <= 1),
      ("pass_rate", r.pass_rate, len(r.pass_rate) == 2 and 0 <= r.pass_rate[0] <= r.pass_rate[1] <= 1),
      ("thought_tokens", r.thought_tokens, len(r.thought_tokens) == 2 and 0 <= r.thought_tokens[0] <= r.thought_tokens[1]),
      ("rewrite", r.rewrite, set(r.rewrite) <= set(REWRITINGS))):
    if not good:
      raise ValueError(f"config.reasoning.{key} is {value}, which cannot be; see bluelm_jax/pipeline/defaults.py")


def check(c: ml_collections.ConfigDict) -> None:
  """Raises ValueError where a value is impossible; sources are checked where they are read."""
  if not c.sources:
    raise ValueError("the config has no sources; add one: config.sources.docs = dict(kind=..., path=..., licence=...)")
  for name, source in c.sources.items():
    missing = [key for key in ("kind", "path", "licence") if not source.get(key)]
    unknown = sorted(set(source) - {"kind", "path", "licence", *_OPTIONAL})
    if missing or unknown:
      raise ValueError(f"source {name!r} has {'no ' + missing[0] if missing else 'an unknown key ' + repr(unknown[0])}; it takes kind, path, licence, {', '.join(_OPTIONAL)}")
    if source["kind"] not in read.KINDS:
      raise ValueError(f"source {name!r} has kind {source['kind']!r}; use {', '.join(read.KINDS)}")
    for key, kinds in _ONLY.items():
      if key in source and source["kind"] not in kinds:
        raise ValueError(f"source {name!r} has {key}, which is for sources of kind {' or '.join(kinds)} alone; remove it")
    if source["kind"] in read.DRAWN:
      checks.source(name, {**read.DRAWN[source["kind"]], **source})
  checks.questions(c.gui)
  for key, value, allowed in (
      ("mixture.by", c.mixture.by, BY), ("holdout_by", c.holdout_by, HOLDOUT_BY), ("mixture.rule", c.mixture.rule, MIXTURES), *(("quality.rules", rule, RULES) for rule in c.quality.rules)):
    if value not in allowed:
      raise ValueError(f"config.{key} names {value!r}; use {', '.join(allowed)}")
  if not 0 < c.dedup.similarity <= 1:
    raise ValueError(f"config.dedup.similarity is {c.dedup.similarity}; use a number over 0 and up to 1")
  if c.mixture.rule == "unimax" and not c.mixture.tokens:
    raise ValueError("config.mixture.rule unimax needs config.mixture.tokens, the tokens of the run that will use the data")
  if c.join.tokens and not 0 < c.join.least <= c.join.tokens:
    raise ValueError(f"config.join.least is {c.join.least}; use a number over 0 and up to config.join.tokens, {c.join.tokens}")
  if min(c.join.far, c.join.image_tokens) < 1:
    raise ValueError("config.join.far and config.join.image_tokens must be at least 1")
  if asks(c):
    _check_reasoning(c)
  elif c.mixture.by == "style" or c.reasoning.to_dict() != reasoning().to_dict():
    raise ValueError(f"config.mixture.by style and config.reasoning are for sources of kind {', '.join(read.QUESTIONS)}; leave them as they are")
  if min(c.block_bytes, c.shard_bytes) < 1:
    raise ValueError("config.block_bytes and config.shard_bytes must be at least 1")
