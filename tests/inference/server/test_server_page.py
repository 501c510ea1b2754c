"""The page at /, in headless Chromium: chat with images, thoughts, budgets, stopping, and marks on the screenshot."""

import json

import cv2
import numpy as np
import pytest

pytest.importorskip("uvicorn")
sync_api = pytest.importorskip("playwright.sync_api")

from bluelm_jax.inference.server.limits import Limits
from bluelm_jax.pipeline.gui import browser
from tests.inference.server import fake
from tests.inference.server.serving import serving
from tests.inference.server.serving import until

try:
  browser.executable()
except ValueError as e:
  pytest.skip(str(e), allow_module_level=True)

SCREEN = cv2.imencode(".png", np.full((120, 60, 3), 90, np.uint8))[1].tobytes()
FILE = "const file = new File([new Uint8Array(bytes)], 'a.png', {type: 'image/png'}), data = new DataTransfer(); data.items.add(file);"
DROP = "(bytes) => {" + FILE + "document.body.dispatchEvent(new DragEvent('drop', {bubbles: true, cancelable: true, dataTransfer: data}));}"
PASTE = "(bytes) => {" + FILE + "document.body.dispatchEvent(new ClipboardEvent('paste', {bubbles: true, clipboardData: data}));}"
BOX = """(e) => {
  const r = e.getBoundingClientRect(), i = e.parentNode.querySelector('img').getBoundingClientRect();
  return [(r.left - i.left) / i.width, (r.top - i.top) / i.height, r.width / i.width, r.height / i.height];
}"""


@pytest.fixture(scope="module")
def server():
  with serving(fake.speaker(), Limits(text_characters=400)) as found:
    yield found


@pytest.fixture(scope="module")
def chromium():
  with sync_api.sync_playwright() as playwright:
    found = playwright.chromium.launch(executable_path=browser.executable(), args=["--no-sandbox", "--disable-gpu"])
    yield found
    found.close()


@pytest.fixture
def opened(server, chromium):
  """Opens the page as a visitor; afterwards nothing must have failed in it, or been asked of anybody else."""
  faults = []

  def open_page(**visitor):
    page = chromium.new_context(**visitor).new_page()
    page.on("pageerror", lambda e: faults.append(str(e)))
    page.on("console", lambda m: faults.append(m.text) if m.type == "error" and "status of 400" not in m.text else None)
    page.on("request", lambda r: None if r.url.startswith((f"http://127.0.0.1:{server.port}/", "data:")) else faults.append(r.url))
    page.goto(f"http://127.0.0.1:{server.port}/")
    page.wait_for_function("document.title == 'tiny'")
    return page

  yield open_page
  assert not faults


def say(page, text):
  """What was sent to the server for it."""
  page.get_by_label("Message").fill(text)
  with page.expect_request("**/v1/chat/completions") as asked:
    page.keyboard.press("Enter")
  return json.loads(asked.value.post_data)


def test_a_chat_about_a_screenshot(opened):
  page = opened(locale="en-US", viewport={"width": 390, "height": 700}, color_scheme="dark")
  page.evaluate(DROP, list(SCREEN))
  page.evaluate(PASTE, list(SCREEN))
  page.locator("#file").set_input_files({"name": "b.png", "mimeType": "image/png", "buffer": SCREEN})
  until(lambda: page.locator("#shown img").count() == 3)
  page.get_by_role("button", name="Remove image 1").click()
  page.get_by_role("button", name="Remove image 1").click()
  slider = page.get_by_role("slider", name="Thinking")
  assert slider.get_attribute("aria-valuetext") == "off"
  slider.fill("3")
  assert slider.get_attribute("aria-valuetext") == "64 tokens"
  asked = say(page, "Point to <b>it</b>.")
  assert asked["thinking"] is True and asked["thinking_token_budget"] == 64 and len(asked["messages"]) == 1
  assert [p["type"] for p in asked["messages"][0]["content"]] == ["image_url", "text"]
  page.locator(".box").wait_for()
  assert page.locator(".user .said").inner_text() == "Point to <b>it</b>."
  assert page.locator(".assistant .said").inner_text() == fake.ANSWER
  details = page.locator(".assistant details")
  assert details.get_attribute("open") is None and details.locator("summary").inner_text() == "Thought"
  assert details.locator("div").text_content() == fake.THOUGHT
  left, top, width, height = page.locator(".point").evaluate(BOX)
  assert (left + width / 2, top + height / 2) == pytest.approx((0.5, 0.06), abs=0.005)
  assert page.locator(".box").evaluate(BOX) == pytest.approx([0.1, 0.2, 0.2, 0.2], abs=0.005)
  assert "(500,060) (100,200)(300,400)" in page.locator(".assistant img").get_attribute("alt")
  assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
  assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(19, 20, 23)"
  slider.fill("0")
  again = say(page, "And now?")
  assert again["thinking"] is False and "thinking_token_budget" not in again
  assert [m["role"] for m in again["messages"]] == ["user", "assistant", "user"] and again["messages"][1]["content"] == fake.ANSWER
  page.locator(".assistant").nth(1).locator(".point").wait_for()
  page.get_by_role("button", name="New chat").click()
  assert page.locator("article").count() == 0 and len(say(page, "Hi")["messages"]) == 1
  page.locator(".assistant .said", has_text=fake.ANSWER).wait_for()
  assert page.locator(".point").count() == 0  # there is no image to draw on


def test_stopping_and_faults(opened, server):
  page = opened(locale="en-GB", viewport={"width": 1300, "height": 800})
  server.engine.pace = 0.1
  say(page, "Hi")
  page.locator(".assistant .said", has_text="H").wait_for()
  page.get_by_role("button", name="Stop").click()
  page.get_by_text("(stopped)").wait_for()
  until(lambda: not server.engine.busy, 1.0)
  server.engine.pace = 0.0
  said = page.locator(".assistant .said").inner_text()
  assert fake.ANSWER.startswith(said) and said != fake.ANSWER
  page.get_by_role("button", name="New chat").click()
  say(page, "x" * 401)
  page.get_by_role("alert").wait_for()
  assert "over 400 characters" in page.get_by_role("alert").inner_text() and page.locator("article").count() == 0
  assert page.get_by_label("Message").input_value() == "x" * 401  # it can be changed and sent again
  say(page, "Hi")
  page.locator(".assistant .said", has_text=fake.ANSWER).wait_for()
  assert page.get_by_role("alert").count() == 0


def test_in_chinese(opened):
  page = opened(locale="zh-CN")
  assert page.evaluate("document.documentElement.lang") == "zh-CN"
  assert [page.get_by_role("button", name=n).count() for n in ("发送", "图片", "新对话")] == [1, 1, 1]
  assert page.get_by_role("slider", name="思考").count() == 1
  controls = "[...document.querySelectorAll('button, input:not([hidden]), textarea, ul, main')]"
  assert page.evaluate(controls + ".every((e) => e.textContent.trim() || e.ariaLabel || e.labels?.length)")
