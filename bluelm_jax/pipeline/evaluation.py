"""What stands in evaluation sets, read once and given to all workers as a file."""

import functools
import pathlib
from typing import Sequence

import numpy as np

from bluelm_jax.data import files as data_files
from bluelm_jax.data.sample import Sample
from bluelm_jax.pipeline import decontaminate
from bluelm_jax.pipeline.clean import turn_texts
from bluelm_jax.pipeline.ingest import read as read_lib


def read(paths: Sequence[str]) -> decontaminate.Tables:
  """n-grams and images of evaluation sets: ArrayRecord shards, or JSON files of documents, conversations or questions."""
  texts, images = [], []
  for path in paths:
    for item in _items(path):
      if isinstance(item, ValueError):
        raise ValueError(f"evaluation set {path} has an unreadable item ({item}); mend it")
      texts += [item.text] if item.text else [text for message in item.messages for text in turn_texts(message)]
      images += item.images
  return decontaminate.tables(texts, images)


def _items(path: str) -> list[Sample | ValueError]:
  kinds = ("json", "questions") if path.endswith((".json", ".jsonl")) else ("array_record",)
  path = str(data_files.ASSETS / path.removeprefix("assets/")) if path.startswith("assets/") else path
  for kind in kinds:
    source = {"kind": kind, "path": path, "licence": "-"}
    blocks, folders = read_lib.blocks({"evaluation": source}, 1 << 40, pathlib.Path("."))
    found = [item for block in blocks for piece in block for item in read_lib.samples(piece, source, folders["evaluation"])]
    if found and not isinstance(found[0], ValueError):
      return found
  return found


@functools.lru_cache(maxsize=1)
def load(path: str) -> decontaminate.Tables:
  """As decontaminate.load, once a process."""
  return decontaminate.load(path)


def digest(found: decontaminate.Tables) -> list:
  """Differs where the tables do."""
  return [[n, len(table), int(np.bitwise_xor.reduce(table)) if len(table) else 0] for n, table in [*found.ngrams.items(), (0, found.images)]]
