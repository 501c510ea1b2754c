"""Lines that stand in several pages: each stays once, in a held-out page if it stands in one; and no other page says what those say.

Pages of documentation and of the web repeat whole paragraphs, which dedup of documents does not see. One worker compares the keys of
all lines, which `clean` has made, and reads the held-out pages.
"""

import dataclasses
import functools
from typing import Any, Mapping, Sequence

import numpy as np

from bluelm_jax.data.forms import MARK
from bluelm_jax.data.sample import Sample
from bluelm_jax.pipeline import clean
from bluelm_jax.pipeline import decontaminate
from bluelm_jax.pipeline import files
from bluelm_jax.pipeline import place
from bluelm_jax.pipeline import stages
from bluelm_jax.pipeline import tokens

_HELD = "held.npz"


def choose(names: Sequence[str], config: Mapping[str, Any], cleaned: stages.Stage, deduped: stages.Stage, stage: stages.Stage) -> None:
  """Writes of each block lines-NAME.npz, `keep` bool [L] of its lines, and what the held-out lines say."""
  found, held = [], []
  for number, name in enumerate(names):
    arrays = files.read_arrays(cleaned.path(f"{name}.npz"))
    samples = files.read_samples(cleaned.path(f"{name}.samples"))
    rows = place.survivors(name, cleaned, deduped)
    test = np.array([place.is_test(sample, config) for sample in samples], bool)
    held += [line for row in rows if test[row] for line in clean.lines(samples[row])]
    owner = np.repeat(np.arange(len(samples)), arrays["line_count"])
    at = np.flatnonzero(np.isin(owner, rows))
    at_place = place.order(arrays["key"], config["seed"])
    found.append((arrays["line"][at], ~test[owner[at]], at_place[owner[at]], at, np.full(len(at), number)))
  key, trained, places, at, block = (np.concatenate(parts) for parts in zip(*found))
  order = np.lexsort((at, block, places, trained, key))
  first = order[np.concatenate([[True], key[order][1:] != key[order][:-1]])] if len(order) else order
  for number, name in enumerate(names):
    keep = np.zeros(len(files.read_arrays(cleaned.path(f"{name}.npz"))["line"]), bool)
    keep[at[first[block[first] == number]]] = True
    files.write_arrays(stage.path(f"lines-{name}.npz"), keep=keep)
  decontaminate.save(stage.path(_HELD), decontaminate.tables(held))


def sizes(name: str, cleaned: stages.Stage, stage: stages.Stage) -> np.ndarray:
  """Bytes of a block's samples once lines are left out, int64 [D]."""
  arrays = files.read_arrays(cleaned.path(f"{name}.npz"))
  keep, count = files.read_arrays(stage.path(f"lines-{name}.npz"))["keep"], arrays["line_count"]
  left = np.bincount(np.repeat(np.arange(len(count)), count), arrays["line_bytes"] * keep, len(count)).astype(np.int64)
  return np.where(count > 0, left, arrays["bytes"])


def reduced(name: str, samples: Sequence[Sample], config: Mapping[str, Any], stage: stages.Stage) -> list[Sample]:
  """A block's samples without the lines that are left out; marks of images stay."""
  keep = iter(files.read_arrays(stage.path(f"lines-{name}.npz"))["keep"].tolist())
  held, out = _held(stage.path(_HELD), stage.key), []
  for sample in samples:
    if found := clean.lines(sample):
      stays = [next(keep) for _ in found]
      if not place.is_test(sample, config):
        stays = stays & ~decontaminate.contaminated(tokens.words(found), held)
      sample = dataclasses.replace(sample, text="\n".join(line for line, stay in zip(found, stays) if stay or MARK in line).strip())
    out.append(sample)
  return out


@functools.lru_cache(maxsize=1)
def _held(path: str, key: str) -> decontaminate.Tables:
  del key  # the path alone does not tell runs apart
  return decontaminate.load(path)
