"""App screens drawn by three UI kits from our own page layouts and words.

The layouts (kits/templates.js) belong to one of three splits each, so that no layout is in two; every layout is drawn by every kit, in
Chinese and English, light and dark.
"""

import asyncio
import pathlib
from typing import Iterator, Mapping

from bluelm_jax.data.sample import Sample
from bluelm_jax.pipeline.gui import boxes
from bluelm_jax.pipeline.gui import browser as browser_lib
from bluelm_jax.pipeline.gui import frames
from bluelm_jax.pipeline.gui.captions import caption
from bluelm_jax.pipeline.gui.pages import encode

PACKAGE = browser_lib.HERE / "kits" / "package.json"
SPLITS = ("train", "select", "test")
DEFAULTS = dict(split="train", count=1000, seed=1, chinese=0.5, dark=0.2, devices=browser_lib.DEVICES, check=0.1, webp_quality=80, first_edition=False)
KITS = {"weui": "weui 2.6.26", "vant": "vant 4.10.2", "antd": "antd-mobile 5.43.0"}  # all MIT
_STYLES = ("weui/dist/style/weui.min.css", "vant/lib/index.css", "antd-mobile/bundle/style.css")
_LIBRARIES = (
    "vue/dist/vue.global.prod.js", "vant/lib/vant.min.js", "react/umd/react.production.min.js", "react-dom/umd/react-dom.production.min.js",
    "antd-mobile/bundle/antd-mobile.umd.js")
_SCRIPTS = ("page/text.js", "kits/content.js", "kits/templates.js", "kits/plan.js", "kits/layout.js", "kits/plain.js", "kits/kits.js")
_PAGE = '<!doctype html><meta name="viewport" content="width=device-width,initial-scale=1"><body><div id="root"></div></body>'


def modules(package: str) -> pathlib.Path:
  """Where npm has installed the kits of a package.json; ValueError where it has not."""
  found = pathlib.Path(package).absolute().parent / "node_modules"
  missing = [path for path in (*_STYLES, *_LIBRARIES) if not (found / path).is_file()]
  if missing:
    raise ValueError(f"no {missing[0]} in {found}; install the UI kits: (cd {found.parent} && npm install)")
  return found


def samples(package: str, name: str, source: Mapping, start: int, stop: int) -> Iterator[Sample]:
  """Screens [start, stop) of a split, each for all devices.

  With first_edition they look as when the shipped shards were drawn: dark colours are ours, not the kits', and weui's search bar is bare.

  A sample's source is "NAME: KIT, TEMPLATE, INDEX, DEVICE". Its meta holds template, kit, language, theme, split, device, width, height,
  caption and elements, as pages.samples says; here elements have colours.
  """
  yield from asyncio.run(_samples(modules(package), name, {**DEFAULTS, **source}, start, stop))


async def _samples(kits: pathlib.Path, name: str, source: Mapping, start: int, stop: int) -> list[Sample]:
  found = []
  async with browser_lib.Browser() as browser:
    for device, spec in source["devices"].items():
      page = await browser.page(spec, "light", None, frozen=False)
      await page.set_content(_PAGE)
      for style in _STYLES:
        await page.add_style_tag(path=kits / style)
      await page.add_style_tag(path=browser_lib.HERE / "kits/page.css")
      for path in [*(kits / p for p in _LIBRARIES), *(browser_lib.HERE / p for p in _SCRIPTS)]:
        await page.add_script_tag(path=path)
      for index in range(start, stop):
        asked = dict(split=source["split"], index=index, **{k: source[k] for k in ("seed", "chinese", "dark", "first_edition")})
        plan = await page.evaluate("(asked) => { const plan = window.plan(asked); window.drawPage(plan.spec); delete plan.spec; return plan; }", asked)
        await browser_lib.settle(page)
        elements = await page.evaluate("() => window.bluelm.elements()")
        if not elements:
          continue
        shot = await page.screenshot(**boxes.STILL)
        image, (high, wide) = encode(shot, spec, source["webp_quality"])
        meta = {**plan, "split": source["split"], "device": device, "width": wide, "height": high, "caption": caption(elements, plan["theme"], plan["language"]), "elements": elements}
        where = f"{name}: {KITS[plan['kit']]}, {plan['template']}, {index}, {device}"
        if boxes.chosen(where, source["check"]):
          meta |= await boxes.check(page, shot, frames.alone(page, elements), spec["ratio"])
        found.append(Sample(where, source["licence"], images=(image,), meta=meta))
      await browser.close(page)
  return found
