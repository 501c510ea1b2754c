"""Chromium without a window, a network or a sense of time: a page looks the same in every run."""

import asyncio
import contextlib
import importlib.util
import os
import pathlib
import shutil
from typing import Mapping
import urllib.parse
import urllib.request

HERE = pathlib.Path(__file__).parent
# CSS pixels, device pixels a CSS pixel, and whether it is touched; "image_width" shrinks the picture.
DEVICES = {
    "phone": dict(width=390, height=844, ratio=2, touch=True),
    "tablet": dict(width=820, height=1180, ratio=2, touch=True),
    "desktop": dict(width=1440, height=900, ratio=1, touch=False)}
DEVICE_KEYS = ("width", "height", "ratio", "touch", "image_width")
_CLOSE = 10.0  # seconds
_FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-partial-raster", "--disable-dev-shm-usage", "--hide-scrollbars", "--font-render-hinting=none", "--disable-lcd-text",
    "--force-color-profile=srgb", "--allow-file-access-from-files", "--enable-blink-features=ComputedAccessibilityInfo", "--force-renderer-accessibility",
    "--host-resolver-rules=MAP * ~NOTFOUND", "--force-webrtc-ip-handling-policy=disable_non_proxied_udp",
    "--blink-settings=imageAnimationPolicy=2", "--autoplay-policy=document-user-activation-required", "--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run")


def executable() -> str:
  """Where Chromium is; $CHROMIUM names another one. Raises ValueError where anything is missing."""
  found = shutil.which(os.environ.get("CHROMIUM", "chromium"))
  if not found:
    raise ValueError("no chromium to draw pages with; on Debian: apt-get install chromium fonts-noto-cjk, elsewhere name one in $CHROMIUM")
  if not importlib.util.find_spec("playwright"):
    raise ValueError("pages are drawn through playwright; pip install 'bluelm_jax[pipeline]'")
  return found


def script(name: str) -> str:
  return (HERE / name).read_text("utf-8")


class Browser:
  """An open Chromium: `async with Browser() as browser`."""

  async def __aenter__(self):
    from playwright import async_api  # an extra's

    self._stack = contextlib.AsyncExitStack()
    self._playwright = await self._stack.enter_async_context(async_api.async_playwright())
    await self._start()
    return self

  async def __aexit__(self, *_):
    with contextlib.suppress(Exception):
      await asyncio.wait_for(self._chromium.close(), _CLOSE)
    await self._stack.aclose()

  async def _start(self):
    self._chromium = await self._playwright.chromium.launch(executable_path=executable(), args=list(_FLAGS))

  async def page(self, device: Mapping, theme: str, folder: pathlib.Path | None, frozen: bool = True):
    """A page that has seen nothing, of a context of its own.

    Args:
      device: as in DEVICES.
      theme: "light" or "dark", which the page may ask for.
      folder: requests for its files are answered, and for data: and blob:; all others fail.
      frozen: whether time and chance are what page/start.js makes of them: `window.bluelmRun(milliseconds)` lets timers run.
    """
    context = await self._chromium.new_context(
        viewport={"width": device["width"], "height": device["height"]}, device_scale_factor=device["ratio"], is_mobile=device["touch"],
        has_touch=device["touch"], color_scheme=theme, locale="zh-CN", timezone_id="UTC", reduced_motion="reduce", service_workers="block",
        accept_downloads=False, offline=True)
    if frozen:
      await context.add_init_script(script("page/start.js"))

    async def answer(route):
      await (route.continue_() if _allowed(route.request.url, folder) else route.abort())

    await context.route("**/*", answer)
    page = await context.new_page()
    page.on("dialog", lambda dialog: dialog.dismiss())
    return page

  async def close(self, page) -> None:
    """Gives a page back; a browser that hangs or is gone is replaced."""
    try:
      await asyncio.wait_for(page.context.close(), _CLOSE)
      gone = not self._chromium.is_connected()
    except Exception:  # whatever playwright says of a dead browser
      gone = True
    if gone:
      with contextlib.suppress(Exception):
        await asyncio.wait_for(self._chromium.close(), _CLOSE)
      await self._start()


def _allowed(url: str, folder: pathlib.Path | None) -> bool:
  parts = urllib.parse.urlsplit(url)
  if parts.scheme in ("data", "blob", "about", "cid"):
    return True
  if parts.scheme != "file" or parts.netloc or folder is None:
    return False
  return pathlib.Path(urllib.request.url2pathname(parts.path)).resolve().is_relative_to(folder)


async def settle(page) -> None:
  """Waits until what scripts have changed is drawn."""
  await page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
