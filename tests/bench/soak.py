"""The loader over spoiled sources for many minutes: what is bad is listed, what is good comes once an epoch, nothing grows.

  python -m tests.bench.soak [minutes]

Laps with 2, 1 and 4 reader processes and none, each of whole epochs. It exits with 1 where anything is not so.
"""

import collections
import gc
import itertools
import json
import multiprocessing
import os
import pathlib
import re
import sys
import tempfile
import time

import numpy as np

from bluelm_jax.data import loader
from bluelm_jax.data import pack
from bluelm_jax.data.chat import ChatFormat
from bluelm_jax.data.tokenizer import Tokenizer
from bluelm_jax.models.presets import PRESETS
from tests.bench import machine
from tests.bench import spoiled

COUNT = 1500  # records of a source
EVERY = 2.0  # seconds between two looks at memory
WARM = 90.0  # seconds of a lap that slopes leave out: caches fill
MARK = re.compile(rf"({'|'.join(spoiled.KINDS)}):(\d+)\.")
MODEL = PRESETS["miniature"]()
CHAT = ChatFormat(Tokenizer(), MODEL.anyres, MODEL.tokens_per_tile)
SPEC = pack.PackSpec(4, 1024, 1, 56, MODEL.anyres.tile_size, MODEL.tokens_per_tile)


def main(minutes: float) -> None:
  print(f"{machine.line()}; {minutes:g} minutes", flush=True)
  with tempfile.TemporaryDirectory() as folder:
    folder = pathlib.Path(folder)
    sources = spoiled.write(folder, COUNT)
    ways = {way for s in sources.values() for way, _ in s.bad.values()}
    total = sum(len(s.good) + len(s.bad) for s in sources.values())
    print(f"{total} records of {len(sources)} sources, {sum(len(s.bad) for s in sources.values())} bad in {len(ways)} ways", flush=True)
    faults = refused(sources)
    started, pace, trainer = time.monotonic(), None, []
    for workers in itertools.cycle((2, 1, 4, 0)):
      left = started + 60 * minutes - time.monotonic()
      if pace and left < pace:  # of an epoch
        break
      epochs = max(round(min(left, 60 * minutes / 4) / pace), 1) if pace else 1
      before = time.monotonic()
      faults += lap(sources, folder / "quarantine.jsonl", workers, epochs, trainer)
      pace = (time.monotonic() - before) / epochs
    print(f"trainer after each lap, MiB and open files: {', '.join(f'{m:.0f} and {f}' for m, f in trainer)}")
    print("\n".join(faults) or "all as it must be")
  sys.exit(bool(faults))


def refused(sources) -> list[str]:
  """With the default share of bad examples the run must stop, soon and with words that help."""
  before, given = time.monotonic(), 0
  try:
    for _ in loader.batches(configs(sources, 1), CHAT, SPEC, 0):
      given += 1
    return ["the default share let everything pass"]
  except ValueError as e:
    print(f"by default it stops after {given} batches, {time.monotonic() - before:.1f} s: {e}", flush=True)
    return []


def configs(sources, epochs):
  return {name: {**s.config, "epochs": epochs} for name, s in sources.items()}


def lap(sources, quarantine, workers, epochs, trainer) -> list[str]:
  """Reads whole epochs and returns what was wrong."""
  batches = loader.batches(configs(sources, epochs), CHAT, SPEC, 0, workers, quarantine, 0.05)
  seen, looks, examples, began = collections.Counter(), collections.defaultdict(list), 0, time.monotonic()
  for batch in batches:
    for tokens, segments, vision in zip(batch.tokens, batch.segment_ids, batch.vision_index):
      examples += int(segments.max())
      seen.update(MARK.findall(CHAT.tokenizer.decode(tokens[(segments > 0) & (vision < 0)])))
    if time.monotonic() - began > EVERY * len(looks[os.getpid()]):
      for pid in (os.getpid(), *(p.pid for p in multiprocessing.active_children())):
        looks[pid].append((time.monotonic() - began, *held(pid)))
  seconds, stats = time.monotonic() - began, batches.get_stats()
  del batches
  gc.collect()
  trainer.append(held(os.getpid()))
  print(
      f"{workers} readers, {epochs} epochs, {seconds:.0f} s, {examples} examples; MiB a minute: trainer {slope(looks.pop(os.getpid()))}, "
      f"readers {', '.join(map(slope, looks.values())) or '-'}; {', '.join(f'{int(v)} {k}' for k, v in stats.items() if k.startswith(('bad', 'over')))}", flush=True)
  return [f"{workers} readers, {epochs} epochs: {f}" for f in compared(sources, seen, examples, epochs, quarantine, stats)]


def compared(sources, seen, examples, epochs, quarantine, stats) -> list[str]:
  good = {(name, str(i)) for name, s in sources.items() for i in s.good}
  found = [f"{k} came {seen[k]} times" for k in sorted(good | set(seen)) if seen[k] != epochs * (k in good)][:10]
  if examples != epochs * len(good):
    found.append(f"{examples} examples of {epochs * len(good)}")
  listed = [json.loads(line) for line in quarantine.read_text().splitlines()]
  have = collections.Counter((e["source"], e["file"], e["index"], e["kind"]) for e in listed)
  bad = {(name, *where, kind): way for name, s in sources.items() for where, (way, kind) in s.bad.items()}
  found += [f"{key} ({bad.get(key, 'good')}) is listed {have[key]} times" for key in sorted(set(bad) | set(have)) if have[key] != (key in bad)][:10]
  kinds = collections.Counter(f"bad/{kind}" for *_, kind in bad)
  found += [f"{stats.get(k)} {k}, not {epochs * n}" for k, n in kinds.items() if stats.get(k) != epochs * n]
  return found


def held(pid: int) -> tuple[float, int]:
  """(resident MiB, open files) of a process; zeros when it ends just now."""
  try:
    pages = int(pathlib.Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20, len(os.listdir(f"/proc/{pid}/fd"))
  except (FileNotFoundError, ProcessLookupError):
    return 0.0, 0


def slope(looks) -> str:
  """"RATE (OPEN FILES)" by least squares after the warm-up; "too short" for less than it again."""
  kept = [look for look in looks if look[0] > WARM and look[1]]
  if not kept or kept[-1][0] < 2 * WARM:
    return "too short"
  times, sizes, files = np.array(kept).T
  return f"{60 * np.polyfit(times, sizes, 1)[0]:+.2f} of {sizes[-1]:.0f} ({files.min():.0f} to {files.max():.0f} files)"


if __name__ == "__main__":
  main(float(sys.argv[1]) if len(sys.argv) > 1 else 20)
