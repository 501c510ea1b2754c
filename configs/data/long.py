"""Long documents for a stage with long rows: those of a folder of yours, or Debian's.

  python -m bluelm_jax.prepare --config=configs/data/long.py:MY_FOLDER --output=DIR
  python -m bluelm_jax.prepare --config=configs/data/long.py:debian --output=DIR       # unpacks packages with apt-get; 190 MB

MY_FOLDER holds code/REPOSITORY/... and books/BOOK/... with pages of HTML (their images stay in place), Markdown, text or PDF.
A stage reads it with data.sources.long = dict(kind="documents", path="DIR/*-train-*", window=32768, share=...).
"""

import glob

from bluelm_jax.pipeline import defaults

BOOKS = dict(html_interleaved="*.html", markdown="*.md", text="*.txt", pdf="*.pdf")


def get_config(folder: str = "debian"):
  c = defaults.dataset()
  c.name = f"long_{folder.strip('/').split('/')[-1]}"
  c.join.tokens, c.join.least = 32_768, 8192
  c.holdout, c.holdout_by = 50, "book"
  if folder != "debian":
    patterns = dict(code=("code", f"{folder}/code/*/**/*"), **{kind: (kind, f"{folder}/books/*/**/{files}") for kind, files in BOOKS.items()})
    for name, (kind, path) in patterns.items():
      if glob.glob(path, recursive=True):
        c.sources[name] = dict(kind=kind, path=path, licence="unknown")
    if not c.sources:
      raise ValueError(f"no code or books in {folder}; give a folder with code/REPOSITORY or books/BOOK, or debian")
    return c
  handbook = "usr/share/doc/debian-handbook/html"
  c.sources = dict(
      handbook_zh=dict(kind="html", package="debian-handbook", path=f"{handbook}/zh-CN/*.html", licence="CC-BY-SA-3.0"),
      handbook_en=dict(kind="html", package="debian-handbook", path=f"{handbook}/en-US/*.html", licence="CC-BY-SA-3.0"),
      python_doc=dict(kind="html", package="python3.11-doc", path="usr/share/doc/python3.11/html/**/*.html", licence="PSF-2.0"),
      gimp=dict(kind="html_interleaved", package="gimp-help-en", path="usr/share/gimp/2.0/help/en/*.html", licence="GFDL-1.2-or-later"),
      office_zh=dict(kind="html", package="libreoffice-help-zh-cn", path="usr/share/libreoffice/help/zh-CN/text/**/*.html", licence="MPL-2.0"),
      django=dict(kind="code", package="python3-django", path="usr/lib/python3/dist-packages/*/**/*", licence="BSD-3-Clause"))
  c.quality.prose_lines = True  # the pages repeat their navigation
  c.max_unreadable = 0.02
  return c
