"""Pages of HTML as screens: a picture and its elements, for each device, theme and place of scrolling."""

import asyncio
import contextlib
import pathlib
from typing import Iterator, Mapping, Sequence

import cv2
import numpy as np

from bluelm_jax.data.sample import Sample
from bluelm_jax.pipeline import language as language_lib
from bluelm_jax.pipeline.gui import boxes
from bluelm_jax.pipeline.gui import browser as browser_lib
from bluelm_jax.pipeline.gui import frames
from bluelm_jax.pipeline.gui.captions import caption

DEFAULTS = dict(devices=browser_lib.DEVICES, themes=("light", "dark"), scrolls=3, check=0.1, timeout=30.0, webp_quality=80)
_MOVED, _SCROLLED = 2000, 100  # milliseconds of its own time that a page has before it is looked at, and after it is scrolled
_RUN = "(ms) => window.bluelmRun?.(ms)"  # archives run no scripts
_STILL = """*, ::before, ::after { animation-duration: 0s !important; animation-delay: 0s !important; animation-iteration-count: 1 !important;
  transition: none !important; scroll-behavior: auto !important; }"""
_SCRIPTS = ("page/text.js", "page/elements.js")
_SURE = 0.5  # confidence under which a page's own word on its language counts


def samples(paths: Sequence[str], name: str, source: Mapping, folder: str) -> Iterator[Sample | ValueError]:
  """The screens of some files; what cannot be drawn comes as the ValueError that says why.

  A sample's source is "NAME: PAGE, DEVICE, THEME, SCROLL". Its meta holds device, theme, scroll (CSS pixels), width and height of the
  image, page, title, language, caption, elements, above and below ([role, name] of what scrolling would show), and where boxes
  were checked what boxes.check says. An element has role, text, label (its accessible name, where that is not its text), state, value, disabled,
  cut (a part of it is not seen) and box (left, top, right, bottom as shares of the image); color is "". What frames show is told too, but for
  above and below; unread, if it is there, holds the boxes of frames that could not be read.
  """
  yield from asyncio.run(_samples(paths, name, {**DEFAULTS, **source}, pathlib.Path(folder or ".").resolve(), folder))


def is_part(path: str) -> bool:
  """Whether a file belongs to a saved page: it lies in X_files beside X.html."""
  return any(
      folder.name.endswith(("_files", ".files")) and any(folder.with_name(folder.name[: -len("_files")] + end).is_file() for end in (".html", ".htm"))
      for folder in pathlib.Path(path).parents)


async def _samples(paths, name, source, root: pathlib.Path, folder: str) -> list[Sample | ValueError]:
  found = []
  async with browser_lib.Browser() as browser:
    for path in paths:
      for device, spec in source["devices"].items():
        seen: set[bytes] = set()
        for theme in source["themes"]:
          where = path.removeprefix(folder)
          page = await browser.page(spec, theme, root)
          try:
            async with asyncio.timeout(source["timeout"]):
              await _open(page, path)
              found += _findable([s async for s in _views(page, name, where, device, spec, theme, source, seen)])
          except Exception as e:  # playwright's errors, of a page that may do anything
            reason = "takes too long" if isinstance(e, TimeoutError) else str(e).splitlines()[0]
            found.append(ValueError(f"{path}: not drawn for {device}, {theme} ({reason[:200]})"))
          finally:
            await browser.close(page)
  return found


async def _open(page, path: str) -> None:
  await page.goto(pathlib.Path(path).resolve().as_uri(), wait_until="load")
  await _ready(page.main_frame)


async def _ready(frame) -> None:
  """Brings a document and then the frames in it to rest, and lets them be asked."""
  from playwright import async_api  # an extra's

  await frame.evaluate("(css) => { const s = document.createElement('style'); s.textContent = css; (document.head ?? document.documentElement).append(s); }", _STILL)
  await frame.evaluate(_RUN, _MOVED)
  await frame.evaluate("""async () => {
    for (const animation of document.getAnimations()) try { animation.finish(); } catch { animation.cancel(); }  // endless ones have no end
    for (const image of document.querySelectorAll('img[loading=lazy]')) image.loading = 'eager';
    await Promise.all([document.fonts.ready, ...[...document.images].map((image) => image.decode().catch(() => {}))]);
  }""")
  for name in _SCRIPTS:
    await frame.evaluate(browser_lib.script(name) + "\n;undefined")  # a function would be called
  for child in frame.child_frames:
    with contextlib.suppress(async_api.Error):  # of which frames.look says that it was not read
      await child.wait_for_load_state("load")
      await _ready(child)


async def _views(page, name: str, where: str, device: str, spec: Mapping, theme: str, source: Mapping, tops: set[bytes]):
  """Samples of a page from top to end; none if its top is one of `tops`, those of its other themes, to which it is added."""
  from playwright import async_api  # an extra's

  height = await page.evaluate("() => document.documentElement.scrollHeight")
  language = ""
  for scroll in scrolls(height, spec["height"], source["scrolls"]):
    await page.evaluate("(y) => window.scrollTo(0, y)", scroll)
    await page.evaluate(_RUN, _SCROLLED)
    for frame in page.frames[1:]:
      with contextlib.suppress(async_api.Error):  # one may be gone by now
        await frame.evaluate(_RUN, _SCROLLED)
    seen, view = await frames.look(page)
    if not view.elements:
      continue
    language = language or source.get("language") or language_of(seen)
    shot = await page.screenshot(**boxes.STILL)
    image, (high, wide) = encode(shot, spec, source["webp_quality"])
    if scroll == 0:
      if image in tops:
        return  # it knows no themes
      tops.add(image)
    meta = dict(
        page=where, device=device, theme=theme, scroll=scroll, width=wide, height=high, title=seen["title"], language=language, elements=seen["elements"],
        caption=caption(seen["elements"], theme, language), above=seen["above"], below=seen["below"])
    if view.unread:
      meta["unread"] = view.unread
    full = f"{name}: {where}, {device}, {theme}, {scroll}"
    if boxes.chosen(full, source["check"]):
      meta |= await boxes.check(page, shot, view, spec["ratio"])
    yield Sample(full, source["licence"], images=(image,), meta=meta)


def _findable(views: list[Sample]) -> list[Sample]:
  """The views of a page, whose above and below name only what one of them shows: other things may be covered wherever one scrolls."""
  shown = {(e["role"], e.get("label") or e["text"]) for view in views for e in view.meta["elements"]}
  for view in views:
    for side in ("above", "below"):
      view.meta[side] = [found for found in view.meta[side] if tuple(found) in shown]
  return views


def scrolls(height: int, window: int, most: int) -> list[int]:
  """Where a page is looked at, evenly from its top to its end, in CSS pixels."""
  count = max(min(-(-height // window), most), 1)
  return [round(i * (height - window) / max(count - 1, 1)) for i in range(count)]


def encode(png: bytes, device: Mapping, quality: int) -> tuple[bytes, tuple[int, int]]:
  """A screenshot as WebP (without loss over quality 100), shrunk to the device's image_width; and its (height, width)."""
  image = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR)
  if device.get("image_width"):
    high, wide = image.shape[:2]
    image = cv2.resize(image, (device["image_width"], round(high * device["image_width"] / wide)), interpolation=cv2.INTER_AREA)
  return cv2.imencode(".webp", image, [cv2.IMWRITE_WEBP_QUALITY, quality])[1].tobytes(), image.shape[:2]


def language_of(seen: Mapping) -> str:
  """A page's language by its texts, or by its own word where they do not tell."""
  code, sure = language_lib.detect("\n".join(e["text"] for e in seen["elements"]))
  return seen["language"][:2].lower() or code if sure < _SURE else code
