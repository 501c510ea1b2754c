"""Screens: those of a folder of your HTML, our own app-like ones, or the miniature's shards again.

  python -m bluelm_jax.prepare --config=configs/data/screens.py:MY_FOLDER --output=DIR    # saved pages with their X_files, MHTML
  python -m bluelm_jax.prepare --config=configs/data/screens.py:apps --output=DIR         # drawn by three UI kits
  python -m bluelm_jax.prepare --config=configs/data/screens.py:miniature --output=DIR    # see data/assets/SCREENS.md

Needs Chromium and a Chinese font (Debian: apt-get install chromium fonts-noto-cjk), the kits npm
(cd bluelm_jax/pipeline/gui/kits && npm install).
"""

import glob

from bluelm_jax.pipeline import defaults
from bluelm_jax.pipeline.gui import pages
from bluelm_jax.pipeline.gui import screens

ENDINGS = ("html", "htm", "mhtml", "mht")


def get_config(folder: str = "apps"):
  c = defaults.dataset()
  c.name = f"screens_{folder.strip('/').split('/')[-1]}"
  c.mixture.by = "source"
  c.gui.tasks = dict(ground=3.0, box=1.0, refer=2.0, read=2.0, read_all=1.0, caption=1.0, state=2.0, act=3.0)
  if folder == "miniature":
    c.gui.tasks = {}
    device = dict(width=360, height=720, ratio=1, touch=True, image_width=240)
    for split, count in (("train", 1400), ("select", 162), ("test", 240)):
      kept = dict(split=split, count=count, devices=dict(phone=device), check=0.0, first_edition=True)
      c.sources[f"screens-{split}"] = dict(kind="screens", path=str(screens.PACKAGE), licence="MIT", **{**screens.DEFAULTS, **kept})
    return c
  if folder == "apps":
    c.sources.apps = dict(kind="screens", path=str(screens.PACKAGE), licence="MIT", **screens.DEFAULTS)
    return c
  for ending in ENDINGS:
    if glob.glob(f"{folder}/**/*.{ending}", recursive=True):
      c.sources[ending] = dict(kind="pages", path=f"{folder}/**/*.{ending}", licence="unknown", **pages.DEFAULTS)
  if not c.sources:
    raise ValueError(f"no {', '.join(ENDINGS)} files in {folder}; give a folder of pages, apps or miniature")
  return c
