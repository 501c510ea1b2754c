"""The miniature's prose, assets/text-train and text-test, from Debian's documentation.

  python -m bluelm_jax.prepare --config=configs/data/miniature_text.py --output=DIR      # unpacks packages with apt-get; 120 MB

It leaves DIR/text-train-00000-of-00001.array_record and DIR/text-test-00000-of-00001.array_record; see assets/TEXT.md.
"""

from bluelm_jax.pipeline import defaults


def get_config():
  c = defaults.dataset()
  c.name = "text"
  handbook, office, python = "usr/share/doc/debian-handbook/html", "usr/share/libreoffice/help", "usr/share/doc/python3.11/html"
  c.sources = {
      "handbook_zh": dict(kind="html", package="debian-handbook", path=f"{handbook}/zh-CN/*.html", licence="CC-BY-SA-3.0", language="zh"),
      "handbook_en": dict(kind="html", package="debian-handbook", path=f"{handbook}/en-US/*.html", licence="CC-BY-SA-3.0", language="en"),
      "office_zh": dict(kind="html", package="libreoffice-help-zh-cn", path=f"{office}/zh-CN/text/s*/guide/*.html", licence="MPL-2.0", language="zh"),
      "reference_zh": dict(kind="html", package="libreoffice-help-zh-cn", path=f"{office}/zh-CN/text/s[cdhmw]*/0*/*.html", licence="MPL-2.0", language="zh"),
      "office_en": dict(kind="html", package="libreoffice-help-en-us", path=f"{office}/en-US/text/si*/guide/*.html", licence="MPL-2.0", language="en")}
  for folder in ("tutorial", "howto"):
    c.sources[f"python_{folder}"] = dict(kind="html", package="python3.11-doc", path=f"{python}/{folder}/*.html", licence="PSF-2.0", language="en")
  c.quality.prose_lines = c.quality.own_script = c.quality.unique_lines = c.ascii_signs = True
  c.quality.rules = ()  # the sources are known to be prose, and these pages are short
  c.holdout = 16
  c.mixture.by = "all"
  c.join.tokens, c.join.least, c.max_bytes = 1700, 480, 3400  # documents of about 1 to 4 KB
  return c
