"""What is done to every sample by itself: normalising, language, quality, decontamination, labels, and what dedup compares."""

import collections
import dataclasses
import functools
import hashlib
import importlib
from typing import Any, Callable, Mapping, NamedTuple, Sequence

import numpy as np

from bluelm_jax.data.forms import MARK
from bluelm_jax.data.sample import Sample
from bluelm_jax.pipeline import classify
from bluelm_jax.pipeline import decontaminate
from bluelm_jax.pipeline import dedup
from bluelm_jax.pipeline import language as language_lib
from bluelm_jax.pipeline import normalise as normalise_lib
from bluelm_jax.pipeline import tokens
from bluelm_jax.pipeline.gui import boxes
from bluelm_jax.pipeline.gui import questions
from bluelm_jax.pipeline.normalise import normalise
from bluelm_jax.pipeline.quality import c4
from bluelm_jax.pipeline.quality import code as code_lib
from bluelm_jax.pipeline.quality import fineweb
from bluelm_jax.pipeline.quality import gopher
from bluelm_jax.pipeline.quality import repetition

_EXAMPLES, _EXAMPLE = 2, 200  # removed samples kept a rule and block, and their characters
_RULES = {"gopher": gopher.broken, "fineweb": fineweb.broken, "c4": lambda text, _: c4.broken(text)}


class Cleaned(NamedTuple):
  """The samples that stay, arrays about them (see `compare`), and removed: rule -> (count, [(source, beginning)])."""

  samples: list[Sample]
  arrays: dict[str, np.ndarray]
  removed: dict[str, tuple[int, list[tuple[str, str]]]]


def text_of(sample: Sample) -> str:
  """What a sample says: its text, its turns, or the texts on a screen that has none."""
  return sample.text or "\n".join(text for m in sample.messages for text in turn_texts(m)) or "\n".join(e["text"] or e["role"] for e in sample.meta.get("elements", ()))


def turn_texts(message: Mapping[str, Any]) -> list[str]:
  """What one turn says, its thinking first."""
  content = message["content"]
  parts = [content] if isinstance(content, str) else [p["text"] for p in content if p["type"] == "text"]
  return [message["reasoning_content"], *parts] if message.get("reasoning_content") else parts


def is_code(sample: Sample) -> bool:
  return sample.meta.get("language") == "code"


def is_page(sample: Sample) -> bool:
  """Whether it is a document of prose, with images in their places or without: no conversation, caption or source code."""
  return not sample.messages and not is_code(sample) and (not sample.images or MARK in sample.text)


def is_screen(sample: Sample) -> bool:
  """Whether it is a picture with elements, asked about or not."""
  return bool(sample.meta.get("elements"))


def lines(sample: Sample) -> list[str]:
  """The lines of a page, of which each may be kept by itself."""
  return sample.text.split("\n") if is_page(sample) else []


def _normalised(sample: Sample) -> Sample:
  if is_code(sample):
    return dataclasses.replace(sample, text=normalise_lib.code(sample.text), meta=dict(sample.meta))

  def one(message):
    content = message["content"]
    content = normalise(content) if isinstance(content, str) else [{**p, "text": normalise(p["text"])} if p["type"] == "text" else p for p in content]
    thinking = {"reasoning_content": normalise(message["reasoning_content"])} if message.get("reasoning_content") else {}
    return {**message, "content": content, **thinking}

  return Sample(sample.source, sample.licence, normalise(sample.text), tuple(map(one, sample.messages)), sample.images, dict(sample.meta))


def clean(samples: Sequence[Sample], config: Mapping[str, Any], evaluation: decontaminate.Tables) -> Cleaned:
  """The samples of a block; `config` is a data set's, as plain dicts."""
  removed: dict[str, list[Sample]] = collections.defaultdict(list)
  quality = config["quality"]

  def keep(samples, rules):
    for sample, rule in zip(samples, rules):
      if rule:
        removed[rule].append(sample)
    return [sample for sample, rule in zip(samples, rules) if not rule]

  samples = [sample if "question" in sample.meta else _normalised(sample) for sample in samples]  # puzzles are drawn with spaces
  if quality["prose_lines"]:
    samples = [dataclasses.replace(s, text=c4.prose_lines(s.text)) if is_page(s) else s for s in samples]
  samples = keep(samples, ["" if text_of(s) else "empty" for s in samples])
  samples = keep(samples, ["text_outside_boxes" if boxes.failed(s) else "" for s in samples])

  found = [(s.meta["language"], 1.0) if s.meta.get("language") else language_lib.detect(text_of(s)) for s in samples]
  for sample, (code, _) in zip(samples, found):
    sample.meta["language"] = code  # our own copy's
  wrong = ["language_other" if config["languages"] and code not in ("code", *config["languages"]) else "language_unsure" if sure < config["language_confidence"] else "" for code, sure in found]
  samples = keep(samples, wrong)

  if quality["own_script"]:
    samples = [dataclasses.replace(s, text=language_lib.own_script(s.text, s.meta["language"])) if is_page(s) else s for s in samples]
    samples = keep(samples, ["" if text_of(s) else "other_script" for s in samples])
  if config["ascii_signs"]:
    samples = [dataclasses.replace(s, text=normalise_lib.ascii_signs(s.text)) if is_page(s) and s.meta["language"] != "zh" else s for s in samples]

  samples = keep(samples, [_document_rule(s, quality["rules"]) for s in samples])
  texts = [text_of(s) for s in samples]
  words = tokens.words(texts)
  rules = [""] * len(samples)
  if "repetition" in quality["rules"]:
    rules = [rule if _is_document(s) else "" for s, rule in zip(samples, repetition.broken(texts, [s.meta["language"] for s in samples], words))]
  hashes, unreadable = _image_hashes(samples)
  rules = [rule or bad for rule, bad in zip(rules, unreadable)]
  if quality["scorer"] and samples:
    scores = [float(x) for x in function(quality["scorer"])(texts)]
    for sample, score in zip(samples, scores):
      sample.meta["quality"] = score
    rules = [rule or ("score" if score < quality["min_score"] else "") for rule, score in zip(rules, scores)]
  if evaluation.ngrams or len(evaluation.images):
    hit = decontaminate.contaminated(words, evaluation)
    rules = [rule or ("contaminated" if bad or decontaminate.image_contaminated(h, evaluation) else "") for rule, bad, h in zip(rules, hit, hashes)]

  stay = np.array([i for i, rule in enumerate(rules) if not rule], int)
  samples = keep(samples, rules)
  texts, hashes, words = [texts[i] for i in stay], [hashes[i] for i in stay], tokens.take(words, stay)
  if config["gui"]["tasks"]:
    samples = [questions.asked(s, config["gui"]) for s in samples]
  given = function(config["classifier"])(texts) if config["classifier"] and texts else map(classify.domain, texts)
  for sample, label in zip(samples, given):
    sample.meta.setdefault("domain", label)
    sample.meta["ability"] = classify.ability(sample)
  gone = {rule: [(s.source, text_of(s)) for s in some] for rule, some in removed.items()}
  arrays = compare(samples, texts, hashes, words)
  return Cleaned(samples, {**arrays, **_line_arrays(samples)} if quality["unique_lines"] else arrays, counted(gone))


def counted(removed: Mapping[str, Sequence[tuple[str, str]]]) -> dict[str, tuple[int, list[tuple[str, str]]]]:
  """rule -> (count, some of the (source, beginning)) of rule -> [(source, text)]."""
  return {rule: (len(gone), [(source, text[:_EXAMPLE]) for source, text in gone[:_EXAMPLES]]) for rule, gone in sorted(removed.items())}


def compare(samples: Sequence[Sample], texts: Sequence[str], hashes: Sequence[list[int]], words: tokens.Words) -> dict[str, np.ndarray]:
  """What later stages know of samples without reading them.

  `key` uint64: equal for copies, of screens for those of equal bytes. `signature` uint8 [D, P]: low bytes of MinHash, and `band` uint64
  [D, BANDS]; of texts alone. `near` bool: whether those count; of questions only equal ones are copies. `image` uint64: of a captioned
  image, 0 for others. `bytes`, `language`, `domain`, `source`, `style`: for the mixture.
  """
  key = tokens.keys(words)
  asked = np.array(["question" in s.meta for s in samples], bool)
  for i in np.flatnonzero(asked):  # one sign makes another question
    key[i] = tokens.exact_key(texts[i])
  for i, found in enumerate(hashes):
    for value in found:
      key[i] = tokens.mix((key[i : i + 1] + np.uint64(1)) ^ np.uint64(value))[0]
    if is_screen(samples[i]):  # screens that look alike differ in a state; equal ones in no byte
      key[i] = tokens.mix(key[i : i + 1] ^ np.frombuffer(hashlib.sha256(samples[i].images[0]).digest()[:8], "<u8"))[0]
  signature = dedup.signatures(words)
  bands = [dedup.band_keys(signature, band) for band in range(dedup.BANDS)]
  return dict(
      key=key, signature=signature.astype(np.uint8), band=np.stack(bands, 1),
      near=np.array([not s.images or is_page(s) for s in samples], bool) & ~asked & (np.diff(words.starts) >= dedup.SHINGLE),
      image=np.array([h[0] if h and not (s.messages or is_page(s) or is_screen(s)) else 0 for s, h in zip(samples, hashes)], np.uint64),
      bytes=np.array([len(text_of(s).encode("utf-8", "surrogatepass")) for s in samples], np.int64),
      language=np.array([s.meta["language"] for s in samples], "U8"), domain=np.array([s.meta["domain"] for s in samples], "U32"),
      source=np.array([source_name(s) for s in samples], "U64"), style=np.array([s.meta.get("style", "") for s in samples], "U8"))


def _line_arrays(samples: Sequence[Sample]) -> dict[str, np.ndarray]:
  """`line` uint64 [L]: keys of all lines, equal where case, spaces and signs are the only difference; `line_bytes` and `line_count` [D]."""
  found = [lines(s) for s in samples]
  flat = [line for one in found for line in one]
  return dict(
      line=tokens.keys(tokens.words(flat)), line_bytes=np.array([len(line.encode("utf-8", "surrogatepass")) + 1 for line in flat], np.int64),
      line_count=np.array([len(one) for one in found], np.int64))


def source_name(sample: Sample) -> str:
  return sample.source.split(": ")[0]


def _is_document(sample: Sample) -> bool:
  """Whether the rules of prose apply."""
  return is_page(sample) and not sample.images


def _document_rule(sample: Sample, rules: Sequence[str]) -> str:
  """The first rule that a document breaks; conversations and samples with images follow none."""
  if is_code(sample):
    return code_lib.broken(sample.text) if "code" in rules else ""
  if _is_document(sample):
    for name in rules:
      if name in _RULES and (rule := _RULES[name](sample.text, sample.meta["language"])):
        return rule
  return ""


def _image_hashes(samples: Sequence[Sample]) -> tuple[list[list[int]], list[str]]:
  hashes, rules = [], []
  for sample in samples:
    try:
      hashes.append([dedup.image_hash(image) for image in sample.images])
      rules.append("")
    except ValueError:
      hashes.append([])
      rules.append("image_unreadable")
  return hashes, rules


@functools.cache
def function(name: str) -> Callable:
  """The function that "module:function" names; ValueError if there is none."""
  module, _, attribute = name.partition(":")
  try:
    return getattr(importlib.import_module(module), attribute)
  except (ImportError, AttributeError, ValueError) as e:
    raise ValueError(f"no function {name!r} ({e}); give module:function of a module on PYTHONPATH") from e
