"""Renders the app screens shipped with the package.

  cd bluelm_jax/pipeline/screens && npm install
  python -m bluelm_jax.pipeline.screens.build --output=bluelm_jax/data/assets

Needs node, Chromium and a Chinese font (Debian: apt-get install chromium fonts-noto-cjk nodejs). Three
splits with disjoint page layouts (templates.mjs); every layout is drawn by three UI kits, in Chinese and
English, light and dark.
"""

import collections
import hashlib
import json
import os
import pathlib
import shutil
import subprocess
import tempfile

from absl import flags
import cv2
import numpy as np

from bluelm_jax import door
from bluelm_jax.data import sample

HERE = pathlib.Path(__file__).parent
COUNTS = {"train": 1400, "select": 162, "test": 240}
ROLES = (
    "avatar", "back", "badge", "button", "checkbox", "fab", "icon", "image", "input", "item", "price", "progress", "radio", "rate", "search",
    "slider", "stepper", "switch", "tab", "text", "title")
KITS = {"weui": "weui 2.6.26", "vant": "vant 4.10.2", "antd": "antd-mobile 5.43.0"}  # all MIT
WIDTH, HEIGHT = 240, 480


def caption(record: dict) -> str:
  """One sentence about a screen, from its elements."""
  counts = collections.Counter(e["role"] for e in record["elements"])
  colors = [e["color"] for e in record["elements"] if e["role"] == "button" and e["color"]]
  titles = [e["text"] for e in record["elements"] if e["role"] == "title"]
  parts = [(role, counts[role]) for role in ("button", "switch", "input", "image", "icon", "item", "tab") if counts[role]][:3]
  if record["language"] == "zh":
    from_parts = "、".join(f"{n}个{_ZH[role]}" for role, n in parts)
    return f"{'深色' if record['theme'] == 'dark' else '浅色'}界面" + (f"“{titles[0]}”" if titles else "") + (f"，有{from_parts}" if parts else "") + "。"
  from_parts = ", ".join(f"{n} {role}{'s' if n > 1 else ''}" for role, n in parts)
  color = f"; the first button is {colors[0]}" if colors else ""
  return f"A {record['theme']} screen" + (f" titled {titles[0]}" if titles else "") + (f" with {from_parts}" if parts else "") + color + "."


_ZH = {"button": "按钮", "switch": "开关", "input": "输入框", "image": "图片", "icon": "图标", "item": "列表项", "tab": "标签"}


def text_in_boxes(shown: np.ndarray, hidden: np.ndarray, elements: list[dict]) -> tuple[int, int]:
  """(text elements whose pixels lie in their box, text elements looked at).

  The page is drawn with and without its text; a pixel that changes must lie in some text element's box
  (2 pixels of slack), and each box must hold at least one such pixel.
  """
  changed = np.abs(shown.astype(int) - hidden).max(-1) > 24
  height, width = changed.shape
  inside = np.zeros_like(changed)
  texts = [e for e in elements if e["role"] in ("text", "title", "price")]
  good = 0
  for e in texts:
    l, t, r, b = (round(v * s) for v, s in zip(e["box"], (width, height) * 2))
    area = (slice(max(t - 2, 0), b + 3), slice(max(l - 2, 0), r + 3))
    good += bool(changed[area].any())
    inside[area] = True
  outside = changed & ~inside
  return (good if outside.sum() <= 0.02 * max(changed.sum(), 1) else 0), len(texts)


def render(split: str, count: int, seed: int, modules: pathlib.Path, work: pathlib.Path):
  """Yields (Sample, (good, checked)) for every screen of a split."""
  command = ["node", str(HERE / "render.mjs"), str(work), split, "0", str(count), str(seed)]
  with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "NODE_MODULES": str(modules)}) as process:
    for line in process.stdout:
      record = json.loads(line)
      path = work / f"{record['index']}.png"
      shown = cv2.imread(str(path))
      hidden = cv2.imread(str(path.with_suffix(".hidden.png"))) if record["index"] % 11 == 0 else None
      check = (0, 0) if hidden is None else text_in_boxes(shown, hidden, record["elements"])
      small = cv2.resize(shown, (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA)
      webp = cv2.imencode(".webp", small, [cv2.IMWRITE_WEBP_QUALITY, 80])[1].tobytes()
      meta = {k: record[k] for k in ("template", "kit", "language", "theme")}
      meta |= {"split": split, "width": WIDTH, "height": HEIGHT, "caption": caption(record), "elements": record["elements"]}
      if record["elements"]:
        yield sample.Sample(source=KITS[record["kit"]], licence="MIT", images=(webp,), meta=meta), check
  if process.returncode:
    raise ValueError(f"render.mjs ended with code {process.returncode}; run it by hand to see why: {' '.join(command)}")


def build(output: pathlib.Path, seed: int, modules: pathlib.Path, counts: dict[str, int]) -> dict:
  """Writes the three shards and returns their statistics; no screen occurs twice in all of them."""
  seen, statistics = set(), {}
  for split, count in counts.items():
    samples, good, checked = [], 0, 0
    with tempfile.TemporaryDirectory() as work:
      for screen, (g, c) in render(split, count, seed, modules, pathlib.Path(work)):
        good, checked = good + g, checked + c
        digest = hashlib.sha256(screen.images[0]).digest()
        if digest not in seen:
          seen.add(digest)
          samples.append(screen)
    sample.write_shard(output / f"screens-{split}.array_record", samples)
    statistics[split] = {
        "screens": len(samples), "text boxes right": f"{good}/{checked}",
        "templates": dict(collections.Counter(s.meta["template"] for s in samples)),
        "kits": dict(collections.Counter(s.meta["kit"] for s in samples)),
        "languages": dict(collections.Counter(s.meta["language"] for s in samples)),
        "roles": dict(collections.Counter(e["role"] for s in samples for e in s.meta["elements"])),
        "bytes": (output / f"screens-{split}.array_record").stat().st_size}
    print(split, json.dumps(statistics[split], ensure_ascii=False))
  return statistics


def main(argv):
  del argv
  modules = pathlib.Path(flags.FLAGS.node_modules or HERE / "node_modules").absolute()
  if not (modules / "playwright-core").is_dir():
    raise ValueError(f"no UI kits in {modules}; run npm install in {HERE}")
  if not shutil.which("node") or not shutil.which(os.environ.get("CHROMIUM", "chromium")):
    raise ValueError("node and chromium are needed; on Debian: apt-get install nodejs chromium fonts-noto-cjk")
  build(pathlib.Path(flags.FLAGS.output), flags.FLAGS.seed, modules, COUNTS)


if __name__ == "__main__":
  flags.DEFINE_string("output", None, "Directory for screens-{train,select,test}.array_record.")
  flags.DEFINE_integer("seed", 1, "Everything drawn follows from it.")
  flags.DEFINE_string("node_modules", "", "Where npm installed the kits; default: beside this file.")
  door.run(main, required=("output",))
