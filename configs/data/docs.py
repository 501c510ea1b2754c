"""Chinese and English documents: those of a folder of yours, or Debian's documentation.

  python -m bluelm_jax.prepare --config=configs/data/docs.py:MY_FOLDER --output=DIR
  python -m bluelm_jax.prepare --config=configs/data/docs.py:debian --output=DIR       # unpacks packages with apt-get; 180 MB
"""

import glob

from bluelm_jax.pipeline import defaults

KINDS = dict(html="*.html", markdown="*.md", text="*.txt", pdf="*.pdf", json="*.jsonl", parquet="*.parquet")


def get_config(folder: str = "debian"):
  c = defaults.dataset()
  c.name = f"docs_{folder.strip('/').split('/')[-1]}"
  if folder != "debian":
    for kind, files in KINDS.items():
      if glob.glob(f"{folder}/**/{files}", recursive=True):
        c.sources[kind] = dict(kind=kind, path=f"{folder}/**/{files}", licence="unknown")
    if not c.sources:
      raise ValueError(f"no {', '.join(KINDS.values())} in {folder}; give a folder of documents, or debian")
    return c
  handbook, office = "usr/share/doc/debian-handbook/html", "usr/share/libreoffice/help"
  c.sources = dict(
      handbook_zh=dict(kind="html", package="debian-handbook", path=f"{handbook}/zh-CN/*.html", licence="CC-BY-SA-3.0"),
      handbook_en=dict(kind="html", package="debian-handbook", path=f"{handbook}/en-US/*.html", licence="CC-BY-SA-3.0"),
      office_zh=dict(kind="html", package="libreoffice-help-zh-cn", path=f"{office}/zh-CN/text/**/*.html", licence="MPL-2.0"),
      office_en=dict(kind="html", package="libreoffice-help-en-us", path=f"{office}/en-US/text/**/*.html", licence="MPL-2.0"),
      manual_zh=dict(kind="man", package="manpages-zh", path="usr/share/man/zh_CN/man*/*.gz", licence="LicenseRef-manpages-zh"),
      python=dict(kind="html", package="python3.11-doc", path="usr/share/doc/python3.11/html/**/*.html", licence="PSF-2.0"),
      pictures=dict(kind="html_images", package="gimp-help-en", path="usr/share/gimp/2.0/help/en/*.html", licence="GFDL-1.2-or-later"))
  c.quality.prose_lines = True  # the pages repeat their navigation
  c.mixture.by, c.mixture.rule = "language", "temperature"
  c.holdout = 50
  return c
