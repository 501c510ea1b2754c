"""How fast pages and screens are drawn: one process, one browser, its start included.

  python -m tests.bench.gui [pages]

Pages are articles of the shipped prose with a heading, links, a form and buttons; each is looked at three times from top to end, light.
"""

import html
import pathlib
import sys
import tempfile
import time

from bluelm_jax.data import sources
from bluelm_jax.pipeline.gui import browser
from bluelm_jax.pipeline.gui import pages
from bluelm_jax.pipeline.gui import screens
from tests.bench import machine

PAGE = """<!doctype html><meta charset=utf-8><meta name=viewport content="width=device-width,initial-scale=1"><title>{0}</title>
<style>body{{font:16px/1.6 sans-serif;margin:auto;max-width:60em;padding:1em}}</style><nav><a href=#>Home</a> <a href=#>News</a></nav><h1>{0}</h1>
<p><input placeholder=Search> <button>Go</button></p>{1}<p><label><input type=checkbox checked> Remember</label></p>"""


def write(folder: pathlib.Path, count: int) -> list[str]:
  shard, paths = sources.read_shard("assets/text-train.array_record"), []
  for i in range(count):
    lines = [html.escape(line) for j in range(3) for line in shard[3 * i + j].text.split("\n")]
    paths.append(str(folder / f"{i}.html"))
    pathlib.Path(paths[-1]).write_text(PAGE.format(lines[0][:40], "".join(f"<p>{line}" for line in lines[1:])), "utf-8")
  return paths


def main():
  count = int(sys.argv[1]) if len(sys.argv) > 1 else 12
  print("\n| drawn | device | boxes checked | screens | a second | elements a screen | kB a screen |\n|---|---|---|---|---|---|---|")
  with tempfile.TemporaryDirectory() as folder:
    paths = write(pathlib.Path(folder), count)
    for device, spec in browser.DEVICES.items():
      for check in (0.0, 1.0):
        source = dict(licence="-", devices={device: spec}, themes=("light",), check=check)
        drawn = {"pages": lambda source=source: pages.samples(paths, "bench", source, folder), "kits": lambda source=source: screens.samples(str(screens.PACKAGE), "bench", source, 0, 3 * count)}
        for name, draw in drawn.items():
          start = time.monotonic()
          found = list(draw())
          seconds = time.monotonic() - start
          elements, size = sum(len(s.meta["elements"]) for s in found), sum(len(s.images[0]) for s in found)
          print(f"| {name} | {device} | {'all' if check else 'none'} | {len(found)} | {len(found) / seconds:.1f} | {elements / len(found):.0f} | {size / len(found) / 1e3:.0f} |", flush=True)
  print(f"\n{machine.line()}")


if __name__ == "__main__":
  main()
