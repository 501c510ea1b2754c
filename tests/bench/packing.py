"""Packing: how full rows and tile slots are, how even the ranks, and what it costs; beside greedy packing and none.

  python -m tests.bench.packing [fill] [speed]     # prints markdown tables; both without a name

Sizes are those of examples drawn from the shipped mixes, or lognormal. "With images" half of the examples carry one
image of 1 to 16 tiles, 197 tokens each beside their text. A rank's tile slots are what the mix needs at full rows and 3 %
more, or as the config has them. Greedy is lmms-engine's rule: rows are filled in order, and closed when the next example
does not fit; it knows no tile budget. "None" has a row for each example.
"""

import sys
import time

import jax
import numpy as np

from bluelm_jax.data import loader
from bluelm_jax.data import pack
from bluelm_jax.data.batch import Example
from bluelm_jax.data.tokenizer import Tokenizer
from bluelm_jax.models import presets
from bluelm_jax.sharding import rules
from bluelm_jax.training import defaults
from bluelm_jax.training import stage
from tests.bench import machine

MARGIN = 1.03
BATCHES, EXAMPLES = 40, 4000  # measured, the greater of the two; as many before, so that what waits has settled
TILE = 378  # pixels a side
HOSTS = 64  # that share a global batch of 16,384 rows


def mix(name: str, size: str):
  """(examples of a stage's mixture, its PackSpec)."""
  config = defaults.load(f"{machine.ROOT}/configs/stages/{name}.py:{size}")
  mesh = rules.make_mesh({"data": 1}, jax.devices()[:1])
  spec, chat = stage.batch_shape(config, presets.PRESETS[size](), mesh, Tokenizer())
  return loader.mixture(config.data.sources, chat, spec.length, config.seed), spec


def drawn(name: str, size: str, count: int = 3000) -> np.ndarray:
  """(tokens, tiles) of a mixture's first examples, int [count, 2]."""
  examples = iter(mix(name, size)[0].to_iter_dataset())
  return np.array([(len(e.tokens), len(e.tiles)) for e in (next(examples) for _ in range(count))])


def lognormal(median: int, length: int, images: bool = False, count: int = 60_000) -> np.ndarray:
  """(tokens, tiles), int [count, 2]; sigma 1.2, cut at the row."""
  rng = np.random.default_rng(0)
  tokens = np.clip(rng.lognormal(np.log(median), 1.2, count).astype(int), 8, length)
  if not images:
    return np.stack([tokens, np.zeros(count, int)], 1)
  tiles = rng.choice([1, 2, 3, 4, 6, 8, 9, 12, 16], count, p=[0.2, 0.15, 0.1, 0.2, 0.1, 0.1, 0.05, 0.05, 0.05]) * (rng.random(count) < 0.5)
  whole = tokens + tiles * 197 + 2 * (tiles > 0)
  return np.stack([np.minimum(whole, length), tiles * (whole <= length)], 1)


def hollow(tokens: int, tiles: int) -> Example:
  """An example of which only the sizes are real."""
  row = np.broadcast_to(np.int32(0), tokens)
  return Example(row, row, row, row, np.zeros((tiles, 0, 0, 3), np.uint8), np.zeros(tiles, np.int32))


def stream(sizes: np.ndarray):
  """A list that waits and the function that reads on, for pack.draw_rows."""
  examples, waiting, count = [hollow(*s) for s in sizes.tolist()], [], [0]

  def read(most, tokens):
    missing = tokens - sum(len(e.tokens) for _, e in waiting)
    while len(waiting) < most or missing > 0:
      waiting.append(((), examples[count[0] % len(examples)]))
      missing -= len(waiting[-1][1].tokens)
      count[0] += 1

  return waiting, read


def greedy_rows(tokens: np.ndarray, length: int) -> int:
  """Rows that greedy packing in order takes."""
  rows, used = 1, 0
  for n in tokens.tolist():
    if used + n > length:
      rows, used = rows + 1, 0
    used += n
  return rows


def fill_line(label: str, sizes: np.ndarray, rows: int, length: int, groups: int, slots: int | None = None) -> str:
  need = sizes[:, 1].sum() / sizes[:, 0].sum() * rows * length / groups
  spec = pack.PackSpec(rows, length, groups, int(np.ceil(MARGIN * need)) if slots is None else slots)
  waiting, read = stream(sizes)
  batches = max(BATCHES, int(EXAMPLES * sizes[:, 0].mean() / (rows * length)))
  loads = []
  for _ in range(2 * batches):
    for row in pack.draw_rows(waiting, spec, read):
      n = np.array([len(e.tokens) for _, e in row], float)
      loads.append((n.sum(), (n**2).sum(), sum(len(e.tiles) for _, e in row)))
  ranks = np.array(loads).reshape(2 * batches, groups, -1, 3).sum(2)[batches:]
  fill, tile_fill = ranks[..., 0].sum() / (batches * rows * length), ranks[..., 2].sum() / max(batches * groups * spec.tile_slots, 1)
  spread = ranks.max(1) / np.maximum(ranks.mean(1), 1e-9)
  greedy = sizes[:, 0].sum() / (greedy_rows(sizes[:, 0], length) * length)
  padding = lambda filled: (1 - filled) / filled
  fewer = padding(greedy) / max(padding(fill), 1e-9)
  even = " | ".join(f"{m:.3f} ({w:.3f})" if w else "" for m, w in zip(spread.mean(0), spread.max(0))) if groups > 1 else " |  | "
  return (
      f"| {label} | {rows} x {length} | {groups} | {need:.1f} of {spec.tile_slots} | {fill:.2%} | {tile_fill:.1%} | {even} | {greedy:.1%} | "
      f"{f'{fewer:.1f}' if fewer < 1000 else 'over 1000'} | {fill * length / sizes[:, 0].mean():.2f} |")


def fill() -> None:
  print(f"{machine.line()}; after as many examples again; spread is max / mean over ranks, mean over batches (worst)\n")
  print("| examples | rows | ranks | tiles a rank needs | positions filled | tile slots used | spread: tokens | Σ length² | tiles | greedy fills | its padding / ours | steps of none / ours |")
  print("|" + "---|" * 12)
  for median, length in ((400, 4096), (1500, 32768)):
    for images in (False, True):
      print(fill_line(f"lognormal, median {median}{', with images' * images}", lognormal(median, length, images), 64, length, 8), flush=True)
  for name in ("joint", "sft"):
    for size in ("miniature", "small"):
      sizes, spec = drawn(name, size), mix(name, size)[1]
      print(fill_line(f"{name}, {size}, slots as configured", sizes, spec.rows, spec.length, 1, spec.tile_slots), flush=True)
      print(fill_line(f"{name}, {size}", sizes, spec.rows, spec.length, 1), flush=True)
      if size == "small":
        for rows, length in ((32, 4096), (16, 32768)):
          print(fill_line(f"{name}, {size}", sizes, rows, length, 8), flush=True)


def seconds(run) -> float:
  """CPU seconds of all threads, the median of five."""
  found = []
  for _ in range(5):
    start = time.process_time()
    run()
    found.append(time.process_time() - start)
  return float(np.median(found))


def speed() -> None:
  print(f"{machine.line()}; CPU seconds, medians of 5\n")
  print("| examples | rows a host | drawing rows, ms | laying out, ms | core seconds for 16,384 rows | cores a host, for a step of 1 s |")
  print("|---|---|---|---|---|---|")
  rows, length, ranks = 16_384 // HOSTS, 4096, 8
  for label, sizes in (("text", lognormal(400, length)), ("with images", lognormal(400, length, True))):
    spec = pack.PackSpec(rows, length, ranks, int(np.ceil(MARGIN * sizes[:, 1].sum() / sizes[:, 0].sum() * rows * length / ranks)))
    waiting, read = stream(sizes)
    draw = seconds(lambda: pack.draw_rows(waiting, spec, read))
    one = pack.PackSpec(rows // ranks, length, 1, spec.tile_slots, TILE, 196)  # a rank's rows, with tiles
    filled = [[whole(e) for _, e in row] for row in pack.draw_rows(waiting, spec, read)[: one.rows]]
    lay = ranks * seconds(lambda: pack.lay_out(filled, pack.empty(one), 196))
    print(f"| lognormal, median 400, {label} | {rows} | {1e3 * draw:.0f} | {1e3 * lay:.0f} | {HOSTS * (draw + lay):.1f} | {draw + lay:.2f} |", flush=True)
  config = defaults.load(f"{machine.ROOT}/configs/stages/text.py:small")
  _, chat = stage.batch_shape(config, presets.small(), rules.make_mesh({"data": 1}, jax.devices()[:1]), Tokenizer())
  text = dict(prose=dict(kind="documents", path="assets/text-train.array_record", share=1.0))
  spec = pack.PackSpec(16, 4096)
  examples = loader.mixture(text, chat, spec.length, 0)
  batches = pack.PackIterator(examples, spec)
  next(batches)
  tokens, start, wall = 0, time.process_time(), time.perf_counter()
  for _ in range(8):
    tokens += int((next(batches).segment_ids > 0).sum())
  cpu, wall = time.process_time() - start, time.perf_counter() - wall
  print(f"\nShipped prose, read, tokenised and packed into rows of 4096: {tokens / cpu:,.0f} tokens a core second ({tokens / wall:,.0f} a second of the clock).")


def whole(example: Example) -> Example:
  """An example with arrays of its own."""
  n, t = len(example.tokens), len(example.tiles)
  ids = np.zeros(n, np.int32)
  return Example(ids, ids, ids.astype(np.float32), ids, np.ones((t, TILE, TILE, 3), np.uint8), np.zeros(t, np.int32))


def main():
  tables = dict(fill=fill, speed=speed)
  for name in sys.argv[1:] or tables:
    if name not in tables:
      sys.exit(f"unknown table {name!r}; use {', '.join(tables)}")
    tables[name]()
    print()


if __name__ == "__main__":
  main()
