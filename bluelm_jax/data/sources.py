"""Where Examples come from: one function a kind of source.

Each returns an endless grain.MapDataset of Examples, random-access by index, from a seed.
"""

import pathlib

import grain
import numpy as np

from bluelm_jax.data import anyres
from bluelm_jax.data import images
from bluelm_jax.data import sample as sample_lib
from bluelm_jax.data.batch import Example
from bluelm_jax.data.chat import ChatFormat
from bluelm_jax.data.tasks import reasoning
from bluelm_jax.data.tasks import screens

ASSETS = pathlib.Path(__file__).parent / "assets"


def resolve(path: str) -> pathlib.Path:
  """A shard's path; "assets/NAME" means the data shipped with the package."""
  found = ASSETS / path.removeprefix("assets/") if path.startswith("assets/") else pathlib.Path(path)
  if not found.is_file():
    raise ValueError(f"no data at {found}; check the source's path or build it with bluelm_jax.pipeline")
  return found


def read_shard(path: str) -> grain.MapDataset:
  """Samples of one ArrayRecord shard."""
  return grain.MapDataset.source(_Shard(resolve(path)))


class _Shard:
  """A grain data source of Samples whose errors name the file."""

  def __init__(self, path: pathlib.Path):
    self._path = path
    try:
      self._records = grain.sources.ArrayRecordDataSource(str(path))
      self._length = len(self._records)
    except RuntimeError as e:
      raise ValueError(f"{path} is no ArrayRecord shard, or a damaged one; build it with bluelm_jax.pipeline") from e
    if not self._length:
      raise ValueError(f"{path} holds no records; build it with bluelm_jax.pipeline")

  def __len__(self) -> int:
    return self._length

  def __getitem__(self, index) -> sample_lib.Sample:
    try:
      return sample_lib.decode(self._records[index])
    except (RuntimeError, ValueError) as e:
      raise ValueError(f"{self._path}: record {index} is damaged or no Sample; rebuild the shard with bluelm_jax.pipeline") from e


def _screen(sample: sample_lib.Sample, path: str) -> sample_lib.Sample:
  """The sample, if it is a screen with its elements."""
  if not sample.images or not sample.meta.get("elements") or not {"language", "caption"} <= set(sample.meta):
    raise ValueError(f"{path} has a record that is no screen ({sample.source}); give a shard of screens, or another kind of source")
  return sample


def documents(path: str, chat: ChatFormat, length: int, seed: int, index: int) -> grain.MapDataset:
  """Windows of at most `length` tokens at a random place of each document."""

  def window(sample, rng: np.random.Generator) -> Example:
    if not sample.text:
      raise ValueError(f"{path} has a record without text ({sample.source}); give a shard of documents, or another kind of source")
    ids = np.asarray([*chat.tokenizer.encode(sample.text), chat.tokenizer.end_id], np.int32)
    start = int(rng.integers(max(len(ids) - length, 1)))
    return text_example(ids[start : start + length + 1], chat, index)

  return read_shard(path).seed(seed).shuffle().repeat().random_map(window)


def text_example(ids: np.ndarray, chat: ChatFormat, source: int = 0) -> Example:
  """A plain-text Example: every token but the first is a target."""
  size = chat.anyres.tile_size if chat.anyres else 1
  n = len(ids) - 1
  return Example(ids[:-1], ids[1:], np.ones(n, np.float32), np.full(n, -1, np.int32), np.zeros((0, size, size, 3), np.uint8), np.zeros(0, np.int32), source)


def reasoning_text(styles: dict[str, float], chat: ChatFormat, seed: int, index: int) -> grain.MapDataset:
  """Generated reasoning conversations; `styles` weighs "long", "short" and "none"."""
  names = list(styles)
  weights = np.array([styles[n] for n in names]) / sum(styles.values())

  def build(_, rng) -> Example:
    return chat.example(reasoning.conversation(reasoning.make(rng), names[rng.choice(len(names), p=weights)]), index)

  return grain.MapDataset.range(1 << 40).seed(seed).random_map(build)


def screen_tasks(path: str, tasks: dict[str, float], turns: int, chat: ChatFormat, seed: int, index: int) -> grain.MapDataset:
  """Conversations of `turns` questions about one screen; `tasks` weighs the kinds of question."""

  def build(sample, rng) -> Example:
    image = images.decode(_screen(sample, path).images[0], sample.source)
    image, elements = screens.augment(image, sample.meta["elements"], rng)
    return chat.example(screens.conversation(image, elements, sample.meta, tasks, turns, rng), index)

  return read_shard(path).seed(seed).shuffle().repeat().random_map(build)


def screen_labels(path: str, chat: ChatFormat, seed: int, index: int) -> grain.MapDataset:
  """Visual tokens of a screen, once for each kind of name they are to learn (objective "dense")."""
  if chat.anyres is None:
    raise ValueError("this model has no vision tower and cannot learn screen_labels; use a BlueLM, or another kind of source")

  def build(sample, rng) -> Example:
    image = images.decode(_screen(sample, path).images[0], sample.source)
    image, elements = screens.augment(image, sample.meta["elements"], rng)
    tiles, grid, places = anyres.tile_image(image, chat.anyres)
    cells = anyres.token_boxes(image.shape[1], image.shape[0], grid, len(tiles), chat.tokens_per_tile, chat.anyres)
    kinds = list(zip(*screens.cell_words(cells, elements, sample.meta["language"])))
    words = [w for kind in kinds for w in kind]
    targets = np.array([chat.tokenizer.encode(w)[0] if w else 0 for w in words], np.int32)
    weights = np.array([0.0 if not w else 0.3 if w == screens.NOTHING else 1.0 for w in words], np.float32).reshape(len(kinds), -1)
    weights[1] *= 2  # few cells show a colour
    weights = weights.ravel()
    vision_index = np.tile(np.arange(len(cells), dtype=np.int32), len(words) // len(cells))
    tokens = np.full(len(vision_index), chat.tokenizer.special_id("<image>"), np.int32)
    return Example(tokens, targets, weights, vision_index, tiles, places, index)

  return read_shard(path).seed(seed).shuffle().repeat().random_map(build)
