"""Images from their bytes to what the vision tower reads, against transformers' processors on the same bytes.

  python -m tests.bench.images [rounds]     # prints a markdown table

One thread. Each side decodes, resizes, cuts and normalises; sides take turns and the table has medians of CPU time. Ours
ends at uint8 tiles, which the model normalises on the device; the column "and normalised" adds the same on the host, in
float32 as the processors do. They differ from ours in this: theirs scale by Pillow's bicubic filter (ours averages areas
where it shrinks), lay a padded image in the middle (ours upper left), and squash the thumbnail (ours keeps its aspect); and they decode large
photographs whole, where ours for AnyRes asks the JPEG decoder for half or a quarter if that is enough.
"""

import io
import math
import sys
import time

import cv2
import numpy as np
from PIL import Image
import torch

from bluelm_jax.data import anyres
from bluelm_jax.data import images
from bluelm_jax.data import sources
from bluelm_jax.data import tiling
from bluelm_jax.models.config import AnyResConfig
from tests.bench import machine

SIZE, GRID = 378, 4
ANYRES = AnyResConfig(SIZE, GRID, GRID, alpha=0.0, thumbnail=True)  # LLaVA-NeXT's rule, as the peer has it
BLUELM = AnyResConfig(SIZE, GRID, GRID)


def peers() -> dict:
  """Name -> (class of SigLIP's processor, of LLaVA-OneVision's): Pillow's backend, and torchvision's where that is installed."""
  from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil
  from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

  found = {"Pillow": (SiglipImageProcessorPil, LlavaOnevisionImageProcessorPil)}
  try:
    from transformers.models.llava_onevision.image_processing_llava_onevision import LlavaOnevisionImageProcessor
    from transformers.models.siglip.image_processing_siglip import SiglipImageProcessor

    found["torchvision"] = (SiglipImageProcessor, LlavaOnevisionImageProcessor)
  except (ImportError, RuntimeError):
    pass
  return found


def files() -> dict[str, bytes]:
  """Photograph-like noise with edges at two sizes, a screen of ours as PNG, and the shipped screens as they are."""
  rng = np.random.default_rng(0)

  def photo(width, height):
    coarse = rng.integers(0, 255, (height // 40, width // 40, 3)).astype(np.uint8)
    smooth = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    return np.clip(smooth + rng.normal(0, 6, smooth.shape), 0, 255).astype(np.uint8)

  def encoded(pixels, kind, **options):
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, kind, **options)
    return out.getvalue()

  shipped = sources.read_shard("assets/screens-test.array_record")[0].images[0]
  screen = cv2.resize(images.decode(shipped), (1080, 2340), interpolation=cv2.INTER_LINEAR)
  return {
      "photo 1280x960, JPEG": encoded(photo(1280, 960), "JPEG", quality=90), "photo 4000x3000, JPEG": encoded(photo(4000, 3000), "JPEG", quality=90),
      "screen 1080x2340, PNG": encoded(screen, "PNG"), "shipped screen {}x{}, {}".format(*images.decode(shipped).shape[1::-1], Image.open(io.BytesIO(shipped)).format): shipped}


def normalise(tiles: np.ndarray) -> np.ndarray:
  """As SigLIP: -1 to 1, float32."""
  return tiles.astype(np.float32) * np.float32(2 / 255) - np.float32(1)


def sides(data: bytes) -> dict[str, dict]:
  """Task -> name -> function that returns the tiles."""
  ours = {"one square": lambda: tiling.fixed(images.decode(data, enough=(math.inf, 384)), 384)[0], "AnyRes": lambda: anyres.tile_image(images.decode(data, enough=ANYRES.canvas), ANYRES)[0]}
  tasks = {task: {"ours": run, "ours, normalised": lambda run=run: normalise(run())} for task, run in ours.items()}
  tasks["AnyRes"]["ours, BlueLM's rule"] = lambda: anyres.tile_image(images.decode(data, enough=BLUELM.canvas), BLUELM)[0]
  pinpoints = [[r * SIZE, c * SIZE] for r in range(1, GRID + 1) for c in range(1, GRID + 1)]
  half = dict(image_mean=[0.5] * 3, image_std=[0.5] * 3)
  for name, (siglip, onevision) in peers().items():
    square = siglip(size=dict(height=384, width=384), **half)
    grids = onevision(size=dict(height=SIZE, width=SIZE), image_grid_pinpoints=pinpoints, **half)
    kind = "pt" if name == "torchvision" else "np"
    for task, processor in (("one square", square), ("AnyRes", grids)):
      tasks[task][name] = lambda processor=processor, kind=kind: processor(Image.open(io.BytesIO(data)), return_tensors=kind)["pixel_values"]
  return tasks


def medians(runs: dict, rounds: int) -> dict[str, float]:
  """Milliseconds of CPU of each side, which take turns."""
  found = {name: [] for name in runs}
  for i in range(rounds):
    for name in runs if i % 2 else reversed(runs):
      start = time.process_time()
      runs[name]()
      found[name].append(time.process_time() - start)
  return {name: 1e3 * float(np.median(seconds)) for name, seconds in found.items()}


def main():
  rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 15
  torch.set_num_threads(1)
  cv2.setNumThreads(1)
  import transformers

  print(f"{machine.line()}, one thread, transformers {transformers.__version__}, Pillow {Image.__version__}, opencv {cv2.__version__}; {rounds} rounds, ms\n")
  names = [*peers()]
  print(f"| image | task | tiles | ours | and normalised | BlueLM's rule | {' | '.join(names)} | ratio | ratio, both normalised |")
  print("|" + "---|" * (8 + len(names)))
  for label, data in files().items():
    for task, runs in sides(data).items():
      shapes = {name: np.asarray(run()).reshape(-1, 3 * (384 if task == "one square" else SIZE) ** 2).shape for name, run in runs.items() if "rule" not in name}
      assert len(set(shapes.values())) == 1, shapes
      ms = medians(runs, rounds)
      best = min(ms[name] for name in names)
      rule = f"{ms[name]:.1f}" if (name := "ours, BlueLM's rule") in ms else ""
      print(
          f"| {label} | {task} | {shapes['ours'][0]} | {ms['ours']:.1f} | {ms['ours, normalised']:.1f} | {rule} | "
          f"{' | '.join(f'{ms[n]:.1f}' for n in names)} | {best / ms['ours']:.2f} | {best / ms['ours, normalised']:.2f} |", flush=True)


if __name__ == "__main__":
  main()
