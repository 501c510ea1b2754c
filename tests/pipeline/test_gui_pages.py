"""Pages drawn by Chromium: elements where they are, nothing that is hidden, no network, the same bytes again."""

import asyncio
import hashlib
import http.server
import importlib.util
import pathlib
import shutil
import threading
import types

import cv2
import numpy as np
import pytest

pytest.importorskip("apache_beam")
pytest.importorskip("playwright")

from bluelm_jax.data import images
from bluelm_jax.data import sources
from bluelm_jax.data.chat import ChatFormat
from bluelm_jax.data.sample import Sample
from bluelm_jax.data.tokenizer import Tokenizer
from bluelm_jax.models import presets
from bluelm_jax.pipeline import defaults
from bluelm_jax.pipeline import run
from bluelm_jax.pipeline.gui import browser
from bluelm_jax.pipeline.gui import frames
from bluelm_jax.pipeline.gui import pages
from bluelm_jax.pipeline.gui import questions
from bluelm_jax.pipeline.gui import screens
from bluelm_jax.pipeline.ingest import read

try:
  browser.executable()
except ValueError as e:
  pytest.skip(str(e), allow_module_level=True)

ROOT = pathlib.Path(__file__).parents[2]
HEAD = '<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content="width=device-width,initial-scale=1"><style>body{margin:0;font:16px sans-serif}</style>'
DEVICE = dict(width=400, height=600, ratio=2, touch=True)
ONE = ["--runner=FnApiRunner", "--direct_running_mode=in_memory", "--direct_num_workers=1"]
THREE = ["--runner=FnApiRunner", "--direct_running_mode=multi_threading", "--direct_num_workers=3"]


def drawn(folder, **more):
  source = dict(kind="pages", path=f"{folder}/**/*.html", licence="MIT", devices={"small": DEVICE}, themes=("light",), check=1.0, **more)
  blocks, folders = read.blocks({"here": source}, 10**6, folder)
  return [item for block in blocks for item in read.block(block, source, folders["here"])]


def at(x, y, w, h):
  return f"position:absolute;left:{x}px;top:{y}px;width:{w}px;height:{h}px;box-sizing:border-box"


KNOWN = f"""{HEAD}<title>Known</title>
<button style="{at(20, 30, 200, 40)}">Save</button>
<input type=checkbox checked aria-label=News style="{at(20, 100, 30, 30)};margin:0">
<input type=checkbox role=switch aria-label=Dark style="{at(100, 100, 40, 30)};margin:0">
<input value=Bob aria-label=Name style="{at(20, 150, 150, 30)}">
<input type=password value=secret aria-label=Password style="{at(200, 150, 150, 30)}">
<select aria-label=Country style="{at(20, 200, 150, 30)}"><option>China<option selected>France</select>
<a href=# style="{at(200, 200, 150, 30)}" aria-current=page>Home</a>
<button disabled style="{at(20, 250, 150, 30)}">Delete</button>
<div role=tab aria-selected=true style="{at(200, 250, 100, 30)}">General</div>
<details style="{at(20, 300, 200, 30)}"><summary>More</summary>unseen words</details>
<p style="{at(20, 350, 300, 40)};margin:0;text-transform:uppercase">Plain <b>words</b> with <a href=#>a link</a></p>
<div style="{at(20, 420, 100, 40)};overflow:hidden"><button style="{at(0, 20, 100, 40)}">Half</button></div>
<button style="{at(20, 480, 100, 40)};visibility:hidden">Hidden1</button><button style="display:none">Hidden2</button>
<button style="{at(130, 480, 100, 40)};opacity:0">Hidden3</button>
<button style="{at(20, 530, 100, 40)}">Covered</button><div style="{at(10, 525, 120, 60)};background:#ccc;pointer-events:none"></div>
<button style="{at(-300, 530, 100, 40)}">Outside</button>
<button style="{at(20, 900, 100, 40)}">Below</button><button style="{at(20, 950, 100, 40)}">Below too</button><div style="{at(10, 945, 120, 60)};background:#ccc"></div>
<div style="{at(0, 1199, 1, 1)}"></div>"""


@pytest.fixture(scope="module")
def known(tmp_path_factory):
  folder = tmp_path_factory.mktemp("known")
  (folder / "a.html").write_text(KNOWN, "utf-8")
  return drawn(folder)


def test_boxes_roles_names_and_states(known):
  first, last = known
  pixels = {}
  for e in first.meta["elements"]:
    pixels[e["role"], e.get("label") or e["text"]] = [round(v * s) for v, s in zip(e["box"], (400, 600) * 2)], e
  expected = {
      ("button", "Save"): (20, 30, 220, 70), ("checkbox", "News"): (20, 100, 50, 130), ("switch", "Dark"): (100, 100, 140, 130), ("input", "Name"): (20, 150, 170, 180),
      ("input", "Password"): (200, 150, 350, 180), ("select", "Country"): (20, 200, 170, 230), ("link", "Home"): (200, 200, 350, 230),
      ("button", "Delete"): (20, 250, 170, 280), ("tab", "General"): (200, 250, 300, 280), ("button", "Half"): (20, 440, 120, 460)}
  for key, box in expected.items():
    assert pixels[key][0] == list(box), key
  facts = {key: {k: v for k, v in e.items() if k in ("state", "value", "disabled", "cut") and v not in ("", None)} for key, (_, e) in pixels.items()}
  assert facts == {
      ("button", "Save"): {}, ("checkbox", "News"): {"state": "checked"}, ("switch", "Dark"): {"state": "off"}, ("input", "Name"): {"value": "Bob"}, ("input", "Password"): {},
      ("select", "Country"): {"value": "France"}, ("link", "Home"): {"state": "selected"}, ("button", "Delete"): {"disabled": True}, ("tab", "General"): {"state": "selected"},
      ("item", "More"): {"state": "collapsed"}, ("text", "PLAIN WORDS WITH A LINK"): {}, ("link", "A LINK"): {}, ("button", "Half"): {"cut": True}}
  assert "secret" not in str(first.meta)


def test_what_lies_further_down_is_told_if_it_can_be_seen_there(known):
  first, last = known
  assert first.meta["below"] == [["button", "Below"]] and first.meta["above"] == [] and first.meta["scroll"] == 0
  assert ["button", "Save"] in last.meta["above"] and last.meta["scroll"] == 600 and [e["text"] for e in last.meta["elements"]] == ["Below"]


def test_samples_say_what_they_are(known):
  first, _ = known
  assert first.source == "here: a.html, small, light, 0" and first.licence == "MIT" and not first.messages
  m = first.meta
  assert images.decode(first.images[0]).shape == (1200, 800, 3) and (m["width"], m["height"]) == (800, 1200)
  assert (m["device"], m["theme"], m["language"], m["title"], m["page"]) == ("small", "light", "en", "Known", "a.html")
  assert m["text_boxes"][0] == m["text_boxes"][1] == 10  # all but what shows no text of its own


def test_the_picture_shows_what_the_elements_say(tmp_path):
  (tmp_path / "a.html").write_text(f'{HEAD}<button style="{at(20, 30, 200, 40)};background:#f00;border:0;border-radius:0"> </button><p>x</p>')
  (made,) = drawn(tmp_path, webp_quality=101)
  red = (images.decode(made.images[0]) == (255, 0, 0)).all(-1)
  ys, xs = np.nonzero(red)
  assert (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1) == (40, 60, 440, 140)


def test_text_that_is_not_in_its_box_or_not_to_be_seen_fails(tmp_path):
  (tmp_path / "moved.html").write_text(f"{HEAD}<p style='margin:0'>As it should be.</p><button style='{at(20, 100, 100, 30)};text-indent:150px;white-space:nowrap;border:0'>Elsewhere</button>")
  (tmp_path / "pale.html").write_text(f"{HEAD}<p style='color:#fff'>White on white.</p><p>Black.</p>")
  assert [s.meta["text_boxes"][0] < s.meta["text_boxes"][1] for s in drawn(tmp_path)] == [True, True]


def test_before_and_after_do_not_count_as_text_that_was_read(tmp_path):
  (tmp_path / "a.html").write_text(f"{HEAD}<p>Black.</p>")
  (tmp_path / "b.html").write_text(f"{HEAD}<style>.x::before{{content:'made up';display:block}}</style><p>Black.</p><div class=x></div>")
  assert [s.meta["all_text"] for s in drawn(tmp_path)] == [True, False]


def test_no_request_leaves_the_folder(tmp_path):
  asked = []

  class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
      asked.append(self.path)
      self.send_error(404)

    do_POST = do_GET

    def log_message(self, *_):
      pass

  server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
  threading.Thread(target=server.serve_forever, daemon=True).start()
  at_home = f"127.0.0.1:{server.server_port}"
  inside, folder = cv2.imencode(".png", np.zeros((20, 20, 3), np.uint8))[1].tobytes(), tmp_path / "site"
  folder.mkdir()
  for path in (folder / "in.png", tmp_path / "out.png"):
    path.write_bytes(inside)
  (folder / "link.png").symlink_to(tmp_path / "out.png")
  (folder / "a.html").write_text(f"""{HEAD}<link rel=stylesheet href=http://{at_home}/a.css><link rel=preconnect href=http://{at_home}><link rel=prefetch href=http://{at_home}/p>
    <img id=in src=in.png><img id=out src=../out.png><img id=link src=link.png><img src=http://{at_home}/b.png><iframe src=http://{at_home}/c></iframe>
    <p id=p>waiting</p><script>
    fetch('http://{at_home}/d').catch(() => 0); navigator.sendBeacon('http://{at_home}/e'); new WebSocket('ws://{at_home}/f'); new EventSource('http://{at_home}/g');
    new Worker(URL.createObjectURL(new Blob(["fetch('http://{at_home}/h')"]))); window.open('http://{at_home}/i');
    onload = () => {{ p.textContent = ['in', 'out', 'link'].map((i) => document.getElementById(i).naturalWidth).join(' ') }}</script>""")
  (made,) = drawn(folder)
  server.shutdown()
  assert "20 0 0" in [e["text"] for e in made.meta["elements"]] and asked == []


def test_a_page_that_leaves_or_hangs_or_fails_is_an_item_that_cannot_be_read(tmp_path):
  (tmp_path / "a_hangs.html").write_text(f"{HEAD}<p>Hello</p><script>while (true) {{}}</script>")
  (tmp_path / "b_hangs_later.html").write_text(f"{HEAD}<p>Hello</p><script>setTimeout(() => {{ while (true) {{}} }}, 100)</script>")
  (tmp_path / "c_breaks.html").write_text(f"{HEAD}<p>Hello<script>throw new Error('mine')</script>")
  (tmp_path / "d_leaves.html").write_text(f"{HEAD}<p>Hello</p><script>location = 'http://example.com/'</script>")
  (tmp_path / "e_asks.html").write_text(f"{HEAD}<p>Hello</p><script>alert(1); confirm(2); prompt(3)</script>")
  (tmp_path / "f_empty.html").write_text("")
  found = drawn(tmp_path, timeout=6.0)
  errors = [e for e in found if isinstance(e, ValueError)]
  assert [pathlib.Path(str(e).split(":")[0]).name for e in errors][:2] == ["a_hangs.html", "b_hangs_later.html"] and all("\n" not in str(e) for e in errors)
  assert "takes too long" in str(errors[0])
  read_ = [s.meta["page"] for s in found if isinstance(s, Sample)]
  assert "c_breaks.html" in read_ and "e_asks.html" in read_ and "f_empty.html" not in read_


MOVING = f"""{HEAD}<style>@keyframes a{{from{{opacity:0;margin-left:0}}to{{opacity:1;margin-left:90px}}}} .a{{animation:a 3s forwards}} .b{{animation:a 1s infinite alternate}}
  @media (prefers-color-scheme:dark){{body{{background:#000;color:#fff}}}}</style><p class=a>End state</p><p class=b>For ever</p><p id=t></p><canvas id=c></canvas><input autofocus>
  <script>let n = 0; setInterval(() => {{ t.textContent = ++n + ' ' + new Date().toString() + Math.random() + crypto.getRandomValues(new Uint8Array(3)) + performance.now() }}, 30)
  const g = c.getContext('2d'); requestAnimationFrame(function f(s) {{ g.fillRect(Math.random() * 200, s % 90, 3, 3); requestAnimationFrame(f) }})</script><div style=height:900px></div><p>The end of this page</p>"""


def files_of(output):
  return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(pathlib.Path(output).iterdir()) if p.is_file()}


def test_the_same_bytes_for_any_number_of_workers(tmp_path):
  pages_ = tmp_path / "pages"
  pages_.mkdir()
  for i in range(4):
    (pages_ / f"{i}.html").write_text(MOVING.replace("End state", f"Page {i} has come to rest and is read"))
  results = []
  for k, options in enumerate((ONE, THREE)):
    c = defaults.dataset()
    c.name, c.block_bytes = "moving", 200_000  # two blocks
    c.sources.here = dict(kind="pages", path=f"{pages_}/*.html", licence="MIT", devices={"small": DEVICE}, check=0.5, scrolls=2)
    c.gui.tasks = {"ground": 1.0, "read": 1.0, "caption": 1.0, "act": 1.0}
    manifest = run.run(c, str(tmp_path / str(k)), options)
    results.append(files_of(tmp_path / str(k)))
  assert results[0] == results[1] and manifest["documents"] == 4 * 2 + 2 and manifest["yields"]["text_boxes"]["checked"] > 0
  shard = sources.read_shard(str(tmp_path / "0" / "*.array_record"))
  made = [shard[i] for i in range(len(shard))]
  assert sorted(s.meta["theme"] for s in made if s.meta["scroll"]) == ["dark", "light"]  # all pages end alike, which is kept once a theme
  assert [images.decode(s.images[0]).mean() < 60 for s in made] == [s.meta["theme"] == "dark" for s in made]
  rested = [e for s in made for e in s.meta["elements"] if e["text"].startswith("Page")]
  assert len(rested) == 8 and all(e["box"][0] > 0.2 for e in rested)  # where the animation ends
  model = presets.PRESETS["miniature"]()
  chat = ChatFormat(Tokenizer(), model.anyres, model.tokens_per_tile)
  assert sources.conversations(str(tmp_path / "0" / "*.array_record"), chat, 0, 0).examples[0].loss_weights.sum() > 0
  assert sources.screen_tasks(str(tmp_path / "0" / "*.array_record"), {"list": 1.0}, 1, chat, 0, 0).examples[0].loss_weights.sum() > 0


def test_parts_of_a_saved_page_are_no_pages(tmp_path):
  (tmp_path / "News_files").mkdir()
  (tmp_path / "News_files" / "frame.html").write_text("<p>advert")
  (tmp_path / "News_files" / "style.css").write_text("p { padding-left: 100px }")
  (tmp_path / "News.html").write_text(f"{HEAD}<link rel=stylesheet href=News_files/style.css><p style='margin:0'>A page that was saved.</p>")
  (made,) = drawn(tmp_path)
  assert made.source.startswith("here: News.html") and abs(made.meta["elements"][0]["box"][0] - 0.25) < 0.01


def test_a_page_without_themes_is_drawn_in_one(tmp_path):
  for name, style in (("plain", ""), ("themed", "<style>@media (prefers-color-scheme: dark) { body { background: #000; color: #fff } }</style>")):
    (tmp_path / f"{name}.html").write_text(f"{HEAD}{style}<p>Hello to you.</p>")
  source = dict(kind="pages", path=f"{tmp_path}/*.html", licence="MIT", devices={"small": DEVICE}, check=0.0)
  blocks, folders = read.blocks({"here": source}, 10**6, tmp_path)
  assert [(s.meta["page"], s.meta["theme"]) for s in read.block(blocks[0], source, folders["here"])] == [
      ("plain.html", "light"), ("themed.html", "light"), ("themed.html", "dark")]


def test_an_archive_is_drawn(tmp_path):
  (tmp_path / "a.mhtml").write_bytes(b"\r\n".join(
      b"""From: <Saved>\nMIME-Version: 1.0\nContent-Type: multipart/related; type="text/html"; boundary="xyz"\n\n--xyz\nContent-Type: text/html; charset=utf-8
Content-Location: http://example.com/\n\n<!doctype html><link rel=stylesheet href=http://example.com/s.css><button>Kept</button>\n--xyz
Content-Type: text/css\nContent-Location: http://example.com/s.css\n\nbutton { position: absolute; left: 200px; top: 0 }\n--xyz--\n""".split(b"\n")))
  source = dict(kind="pages", path=f"{tmp_path}/*.mhtml", licence="MIT", devices={"wide": dict(width=400, height=300, ratio=1, touch=False)}, themes=("light",), check=1.0)
  blocks, folders = read.blocks({"here": source}, 10**6, tmp_path)
  (made,) = read.block(blocks[0], source, folders["here"])
  (button,) = made.meta["elements"]
  assert button["text"] == "Kept" and abs(button["box"][0] - 0.5) < 0.01 and made.meta["all_text"]


def placed(sample, wide, high):
  """(role, text) -> box in CSS pixels."""
  return {(e["role"], e["text"]): [round(v * s) for v, s in zip(e["box"], (wide, high) * 2)] for e in sample.meta["elements"]}


INNER = """<!doctype html><meta charset=utf-8><style>body{margin:0;font:16px sans-serif}</style><button style='%s'>Inside</button>
  <button style='%s'>Half seen</button><button style='%s'>Not seen</button><button style='%s'>Covered</button><p style='%s' id=p>waiting</p>
  <script>setTimeout(() => { p.textContent = 'Its time went on' }, 500)</script>""" % (at(10, 10, 80, 30), at(150, 10, 80, 30), at(10, 300, 80, 30), at(10, 60, 80, 30), at(10, 110, 180, 20) + ";margin:0")


def test_what_frames_show_is_told_where_it_is(tmp_path):
  (tmp_path / "Page_files").mkdir()
  (tmp_path / "Page_files" / "inner.html").write_text(INNER)
  deeper = "<body style='margin:0'><iframe srcdoc='<button style=&quot;position:absolute;left:5px;top:6px;width:90px;height:20px&quot;>Deeper</button>' style='border:3px solid;margin:7px;padding:2px;width:150px;height:60px'></iframe>"
  (tmp_path / "Page_files" / "outer.html").write_text(deeper)
  (tmp_path / "Page.html").write_text(f"""{HEAD}<button style="{at(10, 10, 100, 30)}">Outside</button>
    <div style="{at(0, 50, 350, 290)};overflow:hidden"><iframe src=Page_files/inner.html style="{at(150, 50, 250, 200)};border:4px solid"></iframe></div>
    <div style="{at(160, 150, 100, 60)};background:#ccc;pointer-events:none"></div>
    <iframe src=Page_files/outer.html loading=lazy style="{at(20, 350, 300, 100)};border:0"></iframe>
    <iframe sandbox srcdoc="<p style='margin:0;height:20px'>In a box of sand</p><div style='height:2000px'>" style="{at(20, 480, 200, 40)};border:0"></iframe>
    <iframe srcdoc="<p>Nobody sees this" style="visibility:hidden"></iframe>""")
  (made,) = drawn(tmp_path)
  found = placed(made, 400, 600)
  assert found.pop(("text", "In a box of sand"))[:2] == [28, 488]
  assert found == {
      ("button", "Outside"): [10, 10, 110, 40], ("button", "Inside"): [164, 114, 244, 144], ("button", "Half seen"): [304, 114, 350, 144],
      ("text", "Its time went on"): found["text", "Its time went on"], ("button", "Deeper"): [37, 368, 127, 388]}
  assert [e["text"] for e in made.meta["elements"] if e.get("cut")] == ["Half seen"] and "unread" not in made.meta
  assert made.meta["text_boxes"] == [6, 6]  # each drawn alone, in its frame


def test_a_page_of_a_frame_shows_all_its_text(tmp_path):
  (tmp_path / "a.html").write_text(f"{HEAD}<iframe srcdoc='<p>The words of this page are in a frame' style='border:0'></iframe>")
  (tmp_path / "b.html").write_text(f"{HEAD}<iframe srcdoc='<p>The words<style>p::after{{content:\" that nobody reads\"}}</style>' style='border:0'></iframe>")
  read_, unread = drawn(tmp_path)
  assert [e["text"] for e in read_.meta["elements"]] == ["The words of this page are in a frame"] and read_.meta["all_text"]
  assert not unread.meta["all_text"]


def test_a_frame_far_below_is_read_when_it_is_scrolled_to(tmp_path):
  (tmp_path / "a_files").mkdir()
  (tmp_path / "a_files" / "far.html").write_text("<p>Far below")
  (tmp_path / "a.html").write_text(f"{HEAD}<p>Above</p><iframe loading=lazy src=a_files/far.html style='position:absolute;top:9000px;border:0'></iframe>")
  *_, last = drawn(tmp_path, scrolls=3)
  assert [e["text"] for e in last.meta["elements"]] == ["Far below"] and "unread" not in last.meta


@pytest.mark.parametrize("scrolled", ["f.remove()", "f.contentWindow.go()"])  # at once, or while the frame's own time runs
def test_a_frame_that_goes_when_one_scrolls_takes_no_view_with_it(scrolled, tmp_path):
  (tmp_path / "a.html").write_text(
      f"{HEAD}<p>Above</p><p style='position:absolute;top:9000px'>Far below</p>"
      "<iframe id=f srcdoc='<p>Framed<script>go = () => setTimeout(() => frameElement.remove(), 50)</script>'></iframe>"
      f"<script>onscroll = () => self.f?.contentWindow && {scrolled}</script>")
  first, *_, last = drawn(tmp_path, scrolls=3)
  assert "Framed" in str(first.meta["elements"]) and [e["text"] for e in last.meta["elements"]] == ["Far below"]


def test_a_frame_that_goes_while_one_looks_is_passed_over():
  from playwright import async_api

  async def gone():
    raise async_api.Error("Frame was detached")

  async def seen(_):
    return {"elements": [{"text": "Above"}]}

  page = types.SimpleNamespace(evaluate=seen, main_frame=types.SimpleNamespace(child_frames=[types.SimpleNamespace(frame_element=gone)]))
  _, view = asyncio.run(frames.look(page))
  assert view.frames == [page.main_frame] and view.elements == [{"text": "Above"}] and not view.unread


def test_of_frames_that_are_not_read_nothing_is_said(tmp_path):
  (tmp_path / "a.html").write_text(
      f"{HEAD}<p>Read <button style='{at(20, 100, 300, 150)}'><iframe srcdoc='<p>Small' style='width:200px;height:100px;border:0;transform:scale(.5)'></iframe>Button</button>"
      "<iframe srcdoc='<p>Nobody sees this' style='position:absolute;top:400px;visibility:hidden;transform:scale(.5)'></iframe>")
  (made,) = drawn(tmp_path)
  assert len(made.meta["unread"]) == 1 and not made.meta["all_text"] and "Small" not in str(made.meta["elements"])
  button = next(e for e in made.meta["elements"] if e["role"] == "button")
  screen = questions.Screen(made.meta["elements"], made.meta, "en", 100, np.random.default_rng(0), {})
  assert not questions._legible(screen, button) and questions._read_all(screen) is None
  assert questions._legible(screen._replace(meta={}), button)


DRAWING = f"""{HEAD}<svg width=300 height=200 style="{at(20, 20, 300, 200)}" role=img aria-label=Chart><title>Not drawn</title><desc>Neither</desc>
  <defs><text id=d y=20>Kept</text></defs><rect width=300 height=200 fill="#def"/><g transform="translate(40 30) scale(2)"><text fill="#c00" font-size=10>Twice as <tspan font-weight=bold>large</tspan></text></g>
  <text x=40 y=80>Line one<tspan x=40 dy=18>Line two</tspan></text><text transform="translate(20 180) rotate(-90)">Upwards</text><text x=230 y=150>Over the edge</text><text x=280 y=180>Far over the edge</text>
  <text x=40 y=150 style="visibility:hidden">Hidden</text>
  <foreignObject x=130 y=165 width=90 height=25><button style="width:80px;height:20px">Foreign</button></foreignObject></svg>
  <button style="{at(20, 300, 100, 40)}"><svg width=80 height=20><defs><text y=15>Kept too</text></defs><text y=15 style="fill:blue">Pressed</text></svg></button>"""


def test_words_of_drawings_are_read_where_they_are(tmp_path):
  (tmp_path / "a.html").write_text(DRAWING)
  (made,) = drawn(tmp_path)
  found = {e["text"]: (e["role"], box, e) for e, box in zip(made.meta["elements"], placed(made, 400, 600).values())}
  assert {text: role for text, (role, _, _) in found.items()} == {
      "": "image", "Foreign": "button", "Pressed": "button", "Twice as large": "text", "Line one Line two": "text", "Upwards": "text", "Over the edge": "text"}
  assert found[""][2]["label"] == "Chart"
  l, t, r, b = found["Twice as large"][1]
  assert l == 60 and t < 50 < b and 20 <= b - t <= 30 and r - l > 100
  l, t, r, b = found["Upwards"][1]
  assert b == 200 and b - t > 2 * (r - l)
  assert found["Over the edge"][1][2] == 320 and found["Over the edge"][2]["cut"]
  assert made.meta["text_boxes"] == [6, 6]


def test_words_of_drawings_that_are_not_read_count(tmp_path):
  for name, turn in (("a", 0), ("b", 40)):  # what stands aslant has no box that it fills
    (tmp_path / f"{name}.html").write_text(f"{HEAD}<p>Words</p><svg width=300 height=200><text x=60 y=60 transform='rotate({turn})'>A few words of a drawing</text></svg>")
  (tmp_path / "c.html").write_text(f"{HEAD}<p>Words</p><svg width=300 height=200><text x=60 y=60 fill=none stroke=none>Of no colour</text><text x=60 y=90 fill='#fff'>White</text></svg>")
  (tmp_path / "d.html").write_text(f"{HEAD}<p>Words</p><svg width=300 height=200><text fill='#333' x=60 y=60><tspan>A few words</tspan></text></svg>")
  level, aslant, made, inside = drawn(tmp_path)
  assert inside.meta["all_text"] and inside.meta["text_boxes"] == [2, 2]
  assert level.meta["all_text"] and len(level.meta["elements"]) == 2 and not aslant.meta["all_text"] and len(aslant.meta["elements"]) == 1
  assert made.meta["text_boxes"] == [1, 2] and "Of no colour" not in str(made.meta)


def test_frames_of_an_archive_are_read(tmp_path):
  part = "--xyz\nContent-Type: text/html; charset=utf-8\n{}\n\n<!doctype html>{}\n"
  (tmp_path / "a.mhtml").write_bytes((
      'From: <Saved>\nMIME-Version: 1.0\nContent-Type: multipart/related; type="text/html"; boundary="xyz"\n\n'
      + part.format("Content-Location: http://example.com/", "<body style='margin:0'><p>Around it</p><iframe src='cid:frame-1@mhtml.blink' style='position:absolute;left:100px;top:100px;border:0'></iframe>")
      + part.format("Content-ID: <frame-1@mhtml.blink>\nContent-Location: http://example.com/f", "<body style='margin:0'><button>Kept</button>") + "--xyz--\n").replace("\n", "\r\n").encode())
  source = dict(kind="pages", path=f"{tmp_path}/*.mhtml", licence="MIT", devices={"wide": dict(width=400, height=300, ratio=1, touch=False)}, themes=("light",), check=1.0)
  blocks, folders = read.blocks({"here": source}, 10**6, tmp_path)
  (made,) = read.block(blocks[0], source, folders["here"])
  assert placed(made, 400, 300)["button", "Kept"][:2] == [100, 100] and made.meta["text_boxes"] == [2, 2] and made.meta["all_text"]


KITS = pytest.mark.skipif(not (screens.PACKAGE.parent / "node_modules" / "vant").is_dir(), reason=f"no UI kits; (cd {screens.PACKAGE.parent} && npm install)")
MINIATURE = dict(phone=dict(width=360, height=720, ratio=1, touch=True, image_width=240))


@KITS
def test_screens_of_the_kits_are_those_that_are_shipped():
  """Elements exactly; pictures too but for another version of browser or fonts."""
  source = dict(kind="screens", licence="MIT", split="test", devices=MINIATURE, check=0.0, first_edition=True)
  shipped = sources.read_shard("assets/screens-test.array_record")
  for i, made in enumerate(screens.samples(str(screens.PACKAGE), "here", source, 0, 8)):
    assert [{k: v for k, v in e.items() if k != "label"} for e in made.meta["elements"]] == shipped[i].meta["elements"]
    assert {k: made.meta[k] for k in shipped[i].meta if k != "elements"} == {k: v for k, v in shipped[i].meta.items() if k != "elements"}
    difference = np.abs(images.decode(made.images[0]).astype(int) - images.decode(shipped[i].images[0]))
    assert difference.mean() < 4


@KITS
def test_screens_fill_every_device_and_name_their_switches():
  source = dict(kind="screens", licence="MIT", check=1.0, count=4, chinese=0.0, dark=1.0)
  found = list(screens.samples(str(screens.PACKAGE), "here", source, 0, 4))
  assert len(found) == 12 and {s.meta["device"] for s in found} == {"phone", "tablet", "desktop"}
  assert {s.meta["language"] for s in found} == {"en"} and {s.meta["theme"] for s in found} == {"dark"}
  for s in found:
    assert s.meta["text_boxes"][1] > 0
    assert max(e["box"][2] for e in s.meta["elements"]) > 0.75
    assert all(e.get("label") for e in s.meta["elements"] if e["role"] == "switch")


@KITS
def test_the_search_bar_of_weui_shows_its_words_and_may_be_read():
  source = dict(kind="screens", licence="MIT", split="test", devices=MINIATURE, check=1.0)
  (made,) = screens.samples(str(screens.PACKAGE), "here", source, 3, 4)
  element = next(e for e in made.meta["elements"] if e["role"] == "search")
  screen = questions.Screen(made.meta["elements"], made.meta, "en", 100, np.random.default_rng(0), {})
  assert made.meta["kit"] == "weui" and element["text"] and questions._legible(screen, element)
  assert made.meta["text_boxes"][0] == made.meta["text_boxes"][1] and made.meta["all_text"]


def test_sources_that_cannot_be_drawn_are_one_line(tmp_path, monkeypatch):
  (tmp_path / "package.json").write_text("{}")
  with pytest.raises(ValueError, match="npm install"):
    read.blocks({"here": dict(kind="screens", path=str(tmp_path / "package.json"), licence="MIT")}, 10**6, tmp_path)
  monkeypatch.setenv("CHROMIUM", "no-such-browser")
  with pytest.raises(ValueError, match="apt-get install chromium"):
    read.blocks({"here": dict(kind="pages", path=str(tmp_path / "package.json"), licence="MIT")}, 10**6, tmp_path)


def test_the_config_takes_a_folder(tmp_path):
  spec = importlib.util.spec_from_file_location("screens_config", ROOT / "configs/data/screens.py")
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  with pytest.raises(ValueError, match="give a folder of pages"):
    module.get_config(str(tmp_path))
  shutil.copy(__file__, tmp_path / "a.html")
  assert list(module.get_config(str(tmp_path)).sources) == ["html"]
  for name in ("miniature", "apps", str(tmp_path)):
    defaults.check(module.get_config(name))
