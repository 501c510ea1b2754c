"""Every key of a data set's config, with its default."""

import ml_collections

from bluelm_jax.pipeline.ingest import read

RULES = ("gopher", "repetition", "c4", "fineweb", "code")
BY = ("source", "language", "domain", "all")
HOLDOUT_BY = ("page", "book")
MIXTURES = ("natural", "temperature", "unimax", "fitted")


def dataset() -> ml_collections.ConfigDict:
  """What a data set is made of; a config file fills it."""
  c = ml_collections.ConfigDict()
  c.name = ""
  c.seed = 0  # of the order of records, of what a budget leaves out, and of the fitted mixture
  c.sources = ml_collections.ConfigDict()  # name -> kind, path, licence, and optionally package, language, domain
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

  c.dedup = ml_collections.ConfigDict()
  c.dedup.similarity = 0.7  # Jaccard, of sets of 5-grams of words
  c.dedup.image_bits = 4  # of 64, by which two images' hashes may differ

  c.holdout = 0  # every n-th page, by the hash of its name, goes to the test split; 0 has none
  c.holdout_by = "page"  # pages of one name, such as translations, go together; "book" keeps a book or repository together
  c.mixture = ml_collections.ConfigDict()
  c.mixture.by = "language"  # what groups are: source, language (code is one) or domain; all is one group
  c.mixture.rule = "natural"
  c.mixture.temperature = 2.0
  c.mixture.max_epochs = 4.0  # unimax; 4 is nearly as good as fresh data (Muennighoff et al. 2023)
  c.mixture.tokens = 0  # tokens of the run that will use the data; more of a group are left out. 0 keeps all
  c.mixture.runs = ()  # fitted: {"shares": {group: share}, "loss": loss} of proxy runs
  c.max_bytes = 0  # longer documents are cut at ends of paragraphs; 0 cuts none; with join, only those longer than its samples
  c.join = ml_collections.ConfigDict()  # see join.py
  c.join.tokens = 0  # of the longest sample joined from documents of one repository or book, in their order; 0 joins none
  c.join.least = 0  # tokens: a document of so many stays alone and whole, and shorter samples are left out
  c.join.image_tokens = 800  # that an image counts
  c.join.far = 4096  # tokens beyond which the report of long range counts
  c.tokenizer = ""  # tokenizer.json that counts the tokens; "" is the shipped one
  c.packing_length = 0  # tokens of a row for which a packing plan is written; 0 writes none, and estimates tokens
  c.shard_bytes = 50_000_000
  return c


def check(c: ml_collections.ConfigDict) -> None:
  """Raises ValueError where a value is impossible; sources are checked where they are read."""
  if not c.sources:
    raise ValueError("the config has no sources; add one: config.sources.docs = dict(kind=..., path=..., licence=...)")
  for name, source in c.sources.items():
    missing = [key for key in ("kind", "path", "licence") if not source.get(key)]
    unknown = sorted(set(source) - {"kind", "path", "licence", "package", "language", "domain"})
    if missing or unknown:
      raise ValueError(f"source {name!r} has {'no ' + missing[0] if missing else 'an unknown key ' + repr(unknown[0])}; it takes kind, path, licence, package, language, domain")
    if source["kind"] not in read.KINDS:
      raise ValueError(f"source {name!r} has kind {source['kind']!r}; use {', '.join(read.KINDS)}")
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
  if min(c.block_bytes, c.shard_bytes) < 1:
    raise ValueError("config.block_bytes and config.shard_bytes must be at least 1")
