"""Where Examples come from: one function a kind of source. A record that cannot be used leaves a `faults.Bad` in its place."""

import contextlib
from typing import Callable, NamedTuple, Sequence

import grain
import numpy as np

from bluelm_jax.data import anyres
from bluelm_jax.data import faults
from bluelm_jax.data import files
from bluelm_jax.data import formats
from bluelm_jax.data import forms
from bluelm_jax.data import images
from bluelm_jax.data.batch import Example
from bluelm_jax.data.chat import ChatFormat
from bluelm_jax.data.sample import Sample
from bluelm_jax.data.tasks import lookup
from bluelm_jax.data.tasks import reasoning
from bluelm_jax.data.tasks import screens
from bluelm_jax.data.tokenizer import Tokenizer

ASSETS = files.ASSETS
_WHOLE = 32_768  # characters of a text that is sooner encoded than cut
_CHARACTERS = 6  # a token, most often more than there are
_WORD, _SPARE = 128, 16  # characters before a cut's place, tokens beyond its end


class Source(NamedTuple):
  """What a source gives, from a seed.

  Attributes:
    examples: endless, random access by index; every pass through the data in another order.
    epoch: examples of one pass; None where they are made, not read.
  """

  examples: grain.MapDataset
  epoch: int | None


class Records:
  """The Samples of a source's files, by index; a grain data source whose errors name file and record."""

  def __init__(self, paths: str | Sequence[str]):
    """`paths`: see `files.expand`."""
    self.paths = files.expand(paths)
    self._parts = [formats.open_file(p) for p in self.paths]
    self.stops = np.cumsum([len(p) for p in self._parts])

  def __len__(self) -> int:
    return int(self.stops[-1])

  def locate(self, index: int) -> tuple[int, int]:
    """(which file, which of its records)."""
    part = int(np.searchsorted(self.stops, index, "right"))
    return part, int(index - self.stops[part] + len(self._parts[part]))

  def __getitem__(self, index: int) -> Sample:
    part, at = self.locate(index)
    path = self.paths[part]
    try:
      with faults.of("record"):
        found = self._parts[part][at]
      return found if isinstance(found, Sample) else forms.sample(found, path)
    except faults.Fault as e:
      raise faults.Fault(e.kind, f"{path}: record {at} {e}") from e


def read_shard(path: str | Sequence[str]) -> grain.MapDataset:
  """Samples of data files."""
  return grain.MapDataset.source(Records(path))


def _examples(paths, build: Callable[[Sample, np.random.Generator], Example], seed: int, source: int) -> Source:
  """Examples that `build` makes of the records, shuffled anew in every epoch."""
  records = Records(paths)
  return endless(len(records), lambda index, rng: build_of(records, index, build, source, rng), seed)


def endless(count: int, make: Callable[[int, np.random.Generator], Example | faults.Bad], seed: int) -> Source:
  """What `make` makes of the numbers under `count`, shuffled anew in every epoch."""
  return Source(grain.MapDataset.range(count).seed(seed).shuffle().repeat().random_map(make), count)


def build_of(records: Records, index: int, build: Callable, source: int, rng: np.random.Generator) -> Example | faults.Bad:
  """What `build` makes of a record, or what is wrong with it."""
  part, at = records.locate(index)
  try:
    sample = records[index]
    with faults.of("document" if sample.text else "conversation"):
      return build(sample, rng)
  except faults.Fault as e:
    where = f"{records.paths[part]}: record {at} "
    return faults.Bad(source, records.paths[part], at, e.kind, where + str(e).removeprefix(where))


def _screen(sample: Sample) -> np.ndarray:
  """The picture of a sample that is a screen with its elements."""
  if not sample.images or not screens.is_screen(sample.meta):
    raise faults.Fault("record", f"is no screen ({sample.source}); give a shard of screens, or another kind of source")
  with faults.of("image"):
    return images.decode(sample.images[0], sample.source)


def _pictures(sample: Sample, chat: ChatFormat) -> list[np.ndarray]:
  enough = chat.anyres.canvas if chat.anyres else None
  with faults.of("image"):
    return [images.decode(data, f"its image {i}", enough) for i, data in enumerate(sample.images)]


def documents(paths, chat: ChatFormat, length: int, seed: int, source: int) -> Source:
  """Windows of at most `length` tokens at a random place of each document, no image cut."""

  def window(sample, rng: np.random.Generator) -> Example:
    if not sample.text:
      raise faults.Fault("record", f"is without text ({sample.source}); give a shard of documents, or another kind of source")
    if sample.images:
      return chat.document(sample.text.split(forms.MARK), _pictures(sample, chat), length, rng, source)
    return text_example(text_window(sample.text, chat.tokenizer, length, rng), chat, source)

  return _examples(paths, window, seed, source)


def text_window(text: str, tokenizer: Tokenizer, length: int, rng: np.random.Generator) -> np.ndarray:
  """`length` tokens of a text at a random place, and the one after them, which ends the text if they do; int32 [up to length + 1].

  All windows of a short text are equally likely. Of a longer one only the surroundings of a place are encoded: the place is a
  character, so a window comes as often as its first token has characters. Too late a place, after which too few tokens are left, is
  drawn again from those before it; thus every full window can come, the last one too, and no other.
  """
  if len(text) <= _WHOLE:
    ids = [*tokenizer.encode(text), tokenizer.end_id]
    start = int(rng.integers(max(len(ids) - length, 1)))
    return np.asarray(ids[start : start + length + 1], np.int32)
  end = len(text)
  while True:
    place = int(rng.integers(end)) if end else 0
    ids = _tokens_from(text, place, length + 1, tokenizer)
    if len(ids) > length or not end:
      return np.asarray(ids[: length + 1], np.int32)
    end = place


def _tokens_from(text: str, place: int, count: int, tokenizer: Tokenizer) -> list[int]:
  """At least `count` token ids of a text from a character on, fewer where it ends, then with the end token.

  The cut lies some tokens beyond, and begins at a space before, so that inside it tokens are as in the whole text.
  """
  start = max(text.rfind(" ", max(place - _WORD, 0), place), text.rfind("\n", max(place - _WORD, 0), place), place - _WORD, 0)
  size = _CHARACTERS * (count + _SPARE)
  while True:
    stop = min(place + size, len(text))
    ids = tokenizer.encode_from(text[start:stop], place - start)
    if stop == len(text):
      return [*ids, tokenizer.end_id]
    if len(ids) >= count + _SPARE:
      return ids
    size *= 2


def conversations(paths, chat: ChatFormat, seed: int, source: int) -> Source:
  """Conversations as they stand."""

  def build(sample, rng) -> Example:
    del rng  # nothing is drawn
    if not sample.messages or "chosen" in sample.meta:
      raise faults.Fault("record", f"is no conversation ({sample.source}); give conversations, or another kind of source")
    return chat.example(with_pictures(sample, chat), source)

  return _examples(paths, build, seed, source)


def with_pictures(sample: Sample, chat: ChatFormat) -> list[dict]:
  """The messages of a sample with its images decoded, as `chat` takes them."""
  messages, pictures = forms.turns(sample.messages), _pictures(sample, chat)
  places = [p for m in messages if isinstance(m["content"], list) for p in m["content"] if p["type"] == "image"]
  if len(places) != len(pictures):
    raise faults.Fault("conversation", f"shows {len(places)} images and has {len(pictures)}; give one for each")
  for place, picture in zip(places, pictures):
    place["image"] = picture
  return messages


def preference(sample: Sample, chat: ChatFormat) -> tuple[Example, Example]:
  """The chosen and the rejected answer to one prompt; loss lies on the answers alone."""
  prompt = with_pictures(sample, chat)
  return tuple(chat.example([*prompt, *sample.meta[k]], loss_from=len(prompt)) for k in ("chosen", "rejected"))


def text_example(ids: np.ndarray, chat: ChatFormat, source: int = 0) -> Example:
  """A plain-text Example: every token but the first is a target."""
  size = chat.anyres.tile_size if chat.anyres else 1
  n = len(ids) - 1
  return Example(ids[:-1], ids[1:], np.ones(n, np.float32), np.full(n, -1, np.int32), np.zeros((0, size, size, 3), np.uint8), np.zeros(0, np.int32), source)


def reasoning_text(styles: dict[str, float], chat: ChatFormat, seed: int, source: int) -> Source:
  """Generated reasoning conversations; `styles` weighs "long", "short" and "none"."""
  names = list(styles)
  weights = np.array([styles[n] for n in names]) / sum(styles.values())

  def build(_, rng) -> Example:
    return chat.example(reasoning.conversation(reasoning.make(rng), names[rng.choice(len(names), p=weights)]), source)

  return Source(grain.MapDataset.range(1 << 40).seed(seed).random_map(build), None)


def lookups(paths, chat: ChatFormat, lengths: tuple[int, int], notes: int, seed: int, source: int) -> Source:
  """Conversations about notes in documents, which are joined to `lengths` (from, to) tokens of text."""
  records = Records(paths)

  def build(sample, rng) -> Example:
    text = joined_text(records, sample, chat.tokenizer, int(rng.integers(lengths[0], lengths[1] + 1)), rng)
    return chat.example(lookup.conversation(text, notes, sample.meta.get("language"), rng), source)

  return _examples(paths, build, seed, source)


def joined_text(records: Records, sample: Sample, tokenizer: Tokenizer, length: int, rng: np.random.Generator) -> str:
  """`length` tokens of text: that of a sample, then of others, drawn; a drawn one that is bad is passed over, for it has its own turn."""
  if not sample.text:
    raise faults.Fault("record", f"is without text ({sample.source}); give a shard of documents, or another kind of source")
  ids = []
  while True:
    ids += tokenizer.encode((sample.text + "\n")[: _CHARACTERS * (length - len(ids)) + _WORD])  # no more than is sure to be enough
    following = int(rng.integers(len(records)))
    if len(ids) >= length:
      break
    with contextlib.suppress(faults.Fault):
      sample = records[following] if records[following].text else sample
  return tokenizer.decode(ids[:length]).rstrip("\ufffd")  # a character may have been cut


def screen_tasks(paths, tasks: dict[str, float], turns: int, chat: ChatFormat, seed: int, source: int) -> Source:
  """Conversations of `turns` questions about one screen; `tasks` weighs the kinds of question."""

  def build(sample, rng) -> Example:
    image, elements = screens.augment(_screen(sample), sample.meta["elements"], rng)
    return chat.example(screens.conversation(image, elements, sample.meta, tasks, turns, rng), source)

  return _examples(paths, build, seed, source)


def screen_labels(paths, chat: ChatFormat, seed: int, source: int) -> Source:
  """Visual tokens of a screen, once for each kind of name they are to learn (objective "dense")."""
  if chat.anyres is None:
    raise ValueError("this model has no vision tower and cannot learn screen_labels; use a BlueLM, or another kind of source")

  first = {"": 0}  # token of each word met

  def build(sample, rng) -> Example:
    image, elements = screens.augment(_screen(sample), sample.meta["elements"], rng)
    tiles, grid, places = anyres.tile_image(image, chat.anyres)
    cells = anyres.token_boxes(image.shape[1], image.shape[0], grid, len(tiles), chat.tokens_per_tile, chat.anyres)
    kinds = list(zip(*screens.cell_words(cells, elements, sample.meta["language"])))
    words = [w for kind in kinds for w in kind]
    first.update({w: chat.tokenizer.encode(w)[0] for w in {*words} - {*first}})
    targets = np.array([first[w] for w in words], np.int32)
    weights = np.array([0.0 if not w else 0.3 if w == screens.NOTHING else 1.0 for w in words], np.float32).reshape(len(kinds), -1)
    weights[1] *= 2  # few cells show a colour
    weights = weights.ravel()
    vision_index = np.tile(np.arange(len(cells), dtype=np.int32), len(words) // len(cells))
    tokens = np.full(len(vision_index), chat.tokenizer.special_id("<image>"), np.int32)
    return Example(tokens, targets, weights, vision_index, tiles, places, source)

  return _examples(paths, build, seed, source)
