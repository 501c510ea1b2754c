"""Rows that were planned offline: which documents of a prepared data set share one, by the packing.json beside its shards.

A row is an Example of several segments, so that the packer moves it as a whole: it fills a row of its length by itself. Their order is new in every
epoch, their contents are not, but for a document longer than a row, of which every epoch shows another window. A row is bad with any of its
records.
"""

import json
import os

import numpy as np

from bluelm_jax.data import faults
from bluelm_jax.data import files
from bluelm_jax.data import sources
from bluelm_jax.data.batch import Example
from bluelm_jax.data.chat import ChatFormat
from bluelm_jax.data.sample import PACKING
from bluelm_jax.data.tokenizer import Tokenizer


def documents(paths, chat: ChatFormat, length: int, seed: int, source: int) -> sources.Source:
  """The planned rows of text documents; an epoch is a pass through the rows, which caps count as examples.

  Args:
    length: of a batch's rows.

  Raises:
    ValueError: there is no plan, or it is one of other shards, of another tokenizer, or of rows that do not fill those of `length`.
  """
  records = sources.Records(paths)
  order, starts, size = _read(records, chat.tokenizer, length)

  def window(sample, rng: np.random.Generator) -> Example:
    if not sample.text or sample.images:
      raise faults.Fault("record", f"is not text alone ({sample.source}), which plans do not count; leave the source's packing out")
    return sources.text_example(sources.text_window(sample.text, chat.tokenizer, size, rng), chat, source)

  def row(index: int, rng: np.random.Generator) -> Example | faults.Bad:
    found = []
    for i in order[starts[index] : starts[index + 1]].tolist():
      found.append(sources.build_of(records, i, window, source, rng))
      if isinstance(found[-1], faults.Bad):
        return found[-1]
    return join(found)

  return sources.endless(len(starts) - 1, row, seed)


def join(examples: list[Example]) -> Example:
  """Text examples as the segments of one."""
  ends = np.cumsum([len(e.tokens) for e in examples]).tolist()
  arrays = (np.concatenate([e[field] for e in examples]) for field in range(4))  # tokens, targets, loss weights, vision index
  return examples[0]._replace(**dict(zip(Example._fields, arrays)), starts=(0, *ends[:-1]))


def _read(records: sources.Records, tokenizer: Tokenizer, length: int) -> tuple[np.ndarray, np.ndarray, int]:
  """(records row by row, where the rows start [R + 1], tokens of a row)."""
  order, counts, size, first = [], [], None, 0
  plans = {where: _plan(where) for where in {files.beside(path, PACKING) for path in records.paths}}
  for path, stop in zip(records.paths, records.stops):
    where = files.beside(path, PACKING)
    plan = plans[where]
    rows = plan["rows"].get(os.path.basename(path), [])
    flat = [i for row in rows for i in row]
    if sorted(flat) != list(range(stop - first)):
      raise ValueError(f"{where} is no plan of {os.path.basename(path)} as it is; prepare the data set again")
    if plan["tokenizer"] != tokenizer.digest:
      raise ValueError(f"{where} counts tokens of another tokenizer than {tokenizer.path}; name that in the data set's config.tokenizer and prepare it again")
    if length % plan["row"] or size not in (None, plan["row"]):
      raise ValueError(f"{where} plans rows of {plan['row']} tokens, which do not fill rows of {length}; prepare with config.packing_length = {length}")
    order += [first + i for i in flat]
    counts += map(len, rows)
    size, first = plan["row"], int(stop)
  return np.array(order, np.int64), np.append(0, np.cumsum(counts)), size


def _plan(where: str) -> dict:
  try:
    plan = json.loads(files.read(where))
    lists = all(isinstance(row, list) for rows in plan["rows"].values() for row in rows)
    if lists and isinstance(plan["row"], int) and plan["row"] > 0 and isinstance(plan["tokenizer"], str):
      return plan
  except (OSError, ValueError, KeyError, TypeError, AttributeError):
    pass
  raise ValueError(f"there is no packing plan of this form at {where}; prepare the data set with config.packing_length, or leave the source's packing out")
