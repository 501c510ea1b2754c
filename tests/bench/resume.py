"""Kills a reader of the joint stage's batches again and again; what it read in all must be what an undisturbed one reads.

  python -m tests.bench.resume [kills]     # SIGKILL at random moments, with 1, 2 or 4 reader processes each time

The reader saves its state with each batch, as a trainer does with a checkpoint, and goes on from it.
"""

import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time
import zlib

from bluelm_jax.data import loader
from bluelm_jax.data import pack
from bluelm_jax.data.chat import ChatFormat
from bluelm_jax.data.tokenizer import ASSET
from bluelm_jax.data.tokenizer import Tokenizer
from bluelm_jax.models.presets import PRESETS
from bluelm_jax.training import defaults
from tests.bench import machine

PATIENCE = 180.0  # seconds for a reader to bring its first new batch


def batches(workers: int):
  config = defaults.load(f"{machine.ROOT}/configs/stages/joint.py:miniature")
  model = PRESETS["miniature"]()
  spec = pack.PackSpec(
      config.data.rows, config.data.length, 1, config.data.tile_slots, model.anyres.tile_size, model.tokens_per_tile)
  chat = ChatFormat(Tokenizer(ASSET), model.anyres, model.tokens_per_tile)
  return loader.batches(config.data.sources, chat, spec, config.seed, workers)


def fingerprint(batch) -> int:
  return zlib.crc32(b"".join(x.tobytes() for x in batch))


def read(path: pathlib.Path, count: int, workers: int) -> None:
  """Reads on to `count` batches; `path` holds the fingerprints so far and the state after them."""
  source = batches(workers)
  seen = []
  if path.is_file():
    saved = json.loads(path.read_text())
    seen = saved["seen"]
    source.set_state(saved["state"])
  while len(seen) < count:
    seen.append(fingerprint(next(source)))
    path.with_suffix(".tmp").write_text(json.dumps({"seen": seen, "state": source.get_state()}))
    path.with_suffix(".tmp").rename(path)


def progress(path: pathlib.Path) -> int:
  return len(json.loads(path.read_text())["seen"]) if path.is_file() else 0


def main(kills: int) -> None:
  rng = random.Random(0)
  count = 40 * kills  # more than are read between two kills
  print(f"{machine.line()}; {kills} kills", flush=True)
  with tempfile.TemporaryDirectory() as folder:
    path, orphans, killed = pathlib.Path(folder) / "state.json", 0, 0
    while killed < kills:
      workers, before = rng.choice((1, 2, 4)), progress(path)
      reader = subprocess.Popen(
          [sys.executable, "-m", "tests.bench.resume", "--read", str(path), str(count), str(workers)], cwd=machine.ROOT, start_new_session=True)
      started = time.monotonic()
      while progress(path) == before:
        if time.monotonic() - started > PATIENCE or reader.poll() is not None:
          raise RuntimeError(f"the reader brought nothing (exit {reader.poll()})")
        time.sleep(0.01)
      time.sleep(rng.uniform(0, 1.0))
      reader.send_signal(signal.SIGKILL)
      reader.wait()
      killed += 1
      time.sleep(5)
      orphans += left(reader.pid)
      print(f"kill {killed}: {workers} readers, batches {before} to {progress(path)}", flush=True)
    end = progress(path) + 8
    read(path, end, 0)
    found = json.loads(path.read_text())["seen"]
  undisturbed = batches(0)
  expected = [fingerprint(next(undisturbed)) for _ in range(end)]
  print(f"{end} batches, {sum(a == b for a, b in zip(found, expected))} as the undisturbed reader's; {orphans} processes outlived theirs by 5 s")
  if found != expected or orphans:
    sys.exit(1)


def left(session: int) -> int:
  """Processes of a session that still run; they are ended."""
  alive = [int(p.name) for p in pathlib.Path("/proc").iterdir() if p.name.isdigit() and _session(p) == session]
  for pid in alive:
    os.kill(pid, signal.SIGKILL)
  return len(alive)


def _session(process: pathlib.Path) -> int | None:
  try:
    return int((process / "stat").read_text().rsplit(")", 1)[1].split()[3])
  except (FileNotFoundError, ProcessLookupError):
    return None


if __name__ == "__main__":
  if sys.argv[1:2] == ["--read"]:
    read(pathlib.Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
  else:
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 20)
