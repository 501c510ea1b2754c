"""Long samples: documents kept whole where they are long, and shorter ones of one repository or book joined as a reader takes them.

The unit of a document is its repository (the first folder of a source file's path) or its book (the folder of a page). A record of a
table says its own: "repository" or "book", and "path" in it. What has no unit, such as a conversation, stands alone.
Units of one name in two sources are two. The documents have been cleaned and deduplicated before.
"""

import collections
import dataclasses
import itertools
import posixpath
import re
from typing import Any, Callable, Iterable, Mapping, Sequence

from bluelm_jax.data.forms import MARK
from bluelm_jax.data.sample import Sample
from bluelm_jax.pipeline import clean
from bluelm_jax.pipeline import documents
from bluelm_jax.pipeline import reading_order
from bluelm_jax.pipeline.ingest import code as code_lib

NATIVE, JOINED = "native", "joined"  # meta["long"]
_ROW = re.compile(r"#[\d.]+$")
_BETWEEN = "\n\n"


def unit(sample: Sample) -> str:
  """The name of a sample's repository or book; its own source if it stands alone."""
  if sample.messages or sample.images and MARK not in sample.text:
    return sample.source
  name, _, page = sample.source.partition(": ")
  for key in ("repository", "book"):
    if key in sample.meta:
      return f"{name}: {sample.meta[key]}"
  if not page or _ROW.search(page):
    return sample.source
  return f"{name}: {_root(page) if clean.is_code(sample) else posixpath.dirname(page)}/"


def _root(page: str) -> str:
  return page.partition("/")[0] if "/" in page else ""


def path(sample: Sample) -> str:
  """Where a sample lies in its source, or in the repository or book that its record names."""
  return sample.meta.get("path") or sample.source.partition(": ")[2]


def in_order(found: Sequence[Sample]) -> list[Sample]:
  """The documents of one unit as a reader takes them; see reading_order."""
  by_path: dict[str, list[Sample]] = {}
  before: dict[str, set[str]] = {}
  for sample in found:
    by_path.setdefault(path(sample), []).append(sample)
    root = "" if "repository" in sample.meta else _root(path(sample))
    needed = reading_order.references(path(sample), sample.text, sample.meta.get("code", ""), root)
    before.setdefault(path(sample), set()).update(needed)
  for sample in found:
    if (following := sample.meta.get("next")) in before:
      before[following].add(path(sample))
  return [sample for p in reading_order.order(before) for sample in by_path[p]]


def size(sample: Sample, count: Callable[[str], int], image_tokens: int) -> int:
  """Tokens of a sample, its images included."""
  return count(clean.text_of(sample)) + image_tokens * len(sample.images)


def samples(found: Sequence[Sample], config: Mapping[str, Any], count: Callable[[str], int]) -> list[Sample]:
  """The long samples of a unit.

  Args:
    found: its documents, those of equal paths in a fixed order.
    config: a data set's, as plain dicts.
    count: tokens of a text.

  Returns:
    documents of at least `join.least` tokens, whole, with meta["long"] = "native"; and the others joined, "joined", in samples of
    about equal size, none over `join.tokens`. Those name what they are made of in meta["parts"]: (source, character at which it
    begins). Samples under `join.least` are left out. A document over `join.tokens` is cut if `max_bytes` says so.
  """
  c, whole, short = config["join"], [], []
  for sample in in_order(found):
    tokens = size(sample, count, c["image_tokens"])
    pieces = [sample]
    if config["max_bytes"] and tokens > c["tokens"] and clean.is_page(sample) and not sample.images:
      pieces = [dataclasses.replace(sample, text=text) for text in documents.split(sample.text, config["max_bytes"])]
    for piece in pieces:
      tokens = size(piece, count, c["image_tokens"]) if len(pieces) > 1 else tokens
      if tokens >= c["least"]:
        whole.append(dataclasses.replace(piece, meta={**piece.meta, "long": NATIVE, "tokens": tokens}))
      else:
        short.append((piece, size(dataclasses.replace(piece, text=_headed(piece)), count, c["image_tokens"])))
  for part in documents.even([tokens for _, tokens in short], c["tokens"]):
    tokens = sum(tokens for _, tokens in short[part])
    if tokens >= c["least"]:
      whole.append(_joined([sample for sample, _ in short[part]], tokens))
  return whole


def _headed(sample: Sample) -> str:
  """What a document adds to a joined text; a source file begins with its path, by which others name it."""
  head = code_lib.comment(path(sample), sample.meta["code"]) + "\n" if "code" in sample.meta else ""
  return _BETWEEN + head + clean.text_of(sample)


def _joined(found: Sequence[Sample], tokens: int) -> Sample:
  texts = [_headed(sample) for sample in found]
  texts[0] = texts[0].removeprefix(_BETWEEN)
  if any(sample.images for sample in found):  # where images are, the mark is none of a document's own words
    texts = [text if sample.images else text.replace(MARK, MARK.strip("<>")) for text, sample in zip(texts, found)]
  starts = itertools.accumulate(map(len, texts[:-1]), initial=0)
  parts = [[sample.source, start + len(_BETWEEN) * (start > 0)] for sample, start in zip(found, starts)]
  labels = {key: _most(sample.meta[key] for sample in found) for key in ("language", "domain")}
  return Sample(
      f"{unit(found[0])} ({path(found[0])} to {path(found[-1])})", " AND ".join(sorted({sample.licence for sample in found})), "".join(texts),
      images=tuple(image for sample in found for image in sample.images),
      meta={**labels, "ability": "long_context", "long": JOINED, "tokens": tokens, "parts": parts})


def _most(labels: Iterable[str]) -> str:
  return min(collections.Counter(labels).items(), key=lambda kv: (-kv[1], kv[0]))[0]
