"""Raw sources of every kind to Samples."""

import base64
import gzip
import json
import pathlib

import numpy as np
import pytest

from bluelm_jax.data import sample as sample_lib
from bluelm_jax.data.sample import Sample
from bluelm_jax.pipeline.ingest import chat
from bluelm_jax.pipeline.ingest import html
from bluelm_jax.pipeline.ingest import man
from bluelm_jax.pipeline.ingest import read

cv2 = pytest.importorskip("cv2")
PNG = cv2.imencode(".png", np.full((8, 8, 3), 90, np.uint8))[1].tobytes()


def items(folder, kind, pattern, block_bytes=10**6):
  source = {"kind": kind, "path": str(folder / pattern), "licence": "MIT"}
  blocks, folders = read.blocks({"here": source}, block_bytes, folder)
  return [item for block in blocks for piece in block for item in read.samples(piece, source, folders["here"])], blocks


def test_html_leaves_code_and_variants_out():
  page = """<nav><p>Somewhere else.</p></nav><h1>Title</h1><p>Choose <span hidden class="MAC"><span>Preferences</span></span><span hidden>Options</span>
    now.</p><pre>code()</pre><table><tr><td>cell</td></tr></table><p>汉字
    相连。</p>"""
  assert html.paragraphs(page) == ["Title", "Choose Options now.", "汉字相连。"]


def test_html_images_need_a_text_and_a_file():
  page = '<img src="a.png" alt="A grey square, alone"><img src="b.png" alt="icon"><img src="https://x/c.png" alt="Somewhere else">'
  assert html.images(page) == [("a.png", "A grey square, alone")]


def test_man_pages_lose_their_macros():
  page = '.\\" comment\n.TH LS 1\n.SH NAME\nls \\- list directory contents\n.SH DESCRIPTION\nList \\fBfiles\\fP in\n.IR dir ,\nor here.\n.nf\ncode --x\n.fi\n.PP\nSee\n.BR cp (1)\n.\n.B "a b"\n\\(lqquoted\\(rq\n'
  assert man.paragraphs(page) == ["NAME", "ls - list directory contents", "DESCRIPTION", "List files in dir, or here.", "See cp(1) a b “quoted”"]


def test_mdoc_pages_too():
  page = ".Dd today\n.Sh NAME\n.Nm cat\n.Nd concatenate\n.Sh DESCRIPTION\nThe\n.Nm cat\nutility reads with\n.Fl n\nfiles.\n"
  assert man.paragraphs(page) == ["NAME", "cat concatenate", "DESCRIPTION", "The cat utility reads with -n files."]


def test_markdown_loses_its_marks(tmp_path):
  pytest.importorskip("markdown_it")
  (tmp_path / "a.md").write_text("# Head *line*\n\nOne [link](x)\nand `code`.\n\n```\nskip()\n```\n\n- item\n")
  (sample,), _ = items(tmp_path, "markdown", "*.md")
  assert sample.text == "Head line\nOne link and code.\nitem" and sample.source == "here: a.md" and sample.licence == "MIT"


def _pdf(lines):
  """A one-page PDF that shows lines, written by hand."""
  text = "BT /F1 12 Tf 14 TL 40 700 Td " + " ".join(f"({line}) Tj T*" for line in lines) + " ET"
  objects = [
      "<</Type/Catalog/Pages 2 0 R>>", "<</Type/Pages/Kids[3 0 R]/Count 1>>",
      "<</Type/Page/Parent 2 0 R/MediaBox[0 0 600 800]/Contents 4 0 R/Resources<</Font<</F1 5 0 R>>>>>>",
      f"<</Length {len(text)}>>stream\n{text}\nendstream", "<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>"]
  out, places = "%PDF-1.4\n", []
  for i, body in enumerate(objects):
    places.append(len(out))
    out += f"{i + 1} 0 obj{body}endobj\n"
  table = "".join(f"{p:010d} 00000 n \n" for p in places)
  return f"{out}xref\n0 6\n0000000000 65535 f \n{table}trailer<</Size 6/Root 1 0 R>>\nstartxref\n{len(out)}\n%%EOF".encode()


def test_pdf_lines_become_paragraphs(tmp_path):
  pytest.importorskip("pypdf")
  (tmp_path / "a.pdf").write_bytes(_pdf(["The first paragraph goes on over two lines and is hy-", "phenated at the end.", "The second one is a paragraph of its own on the page."]))
  (tmp_path / "b.pdf").write_bytes(b"%PDF-1.4 broken")
  good, bad = items(tmp_path, "pdf", "*.pdf")[0]
  assert good.text == "The first paragraph goes on over two lines and is hyphenated at the end.\nThe second one is a paragraph of its own on the page."
  assert isinstance(bad, ValueError) and "not a readable PDF" in str(bad)


def test_text_in_any_of_two_encodings_and_zipped(tmp_path):
  (tmp_path / "a.txt").write_bytes("中文文本".encode("gb18030"))
  (tmp_path / "b.txt.gz").write_bytes(gzip.compress("plain".encode()))
  assert [s.text for s in items(tmp_path, "text", "*.txt*")[0]] == ["中文文本", "plain"]


def test_captioned_images(tmp_path):
  (tmp_path / "a.png").write_bytes(PNG)
  (tmp_path / "a.txt").write_text("A grey square.\n")
  (sample,), _ = items(tmp_path, "captioned_images", "*")
  assert sample.text == "A grey square." and sample.images == (PNG,)


def test_images_of_a_page(tmp_path):
  (tmp_path / "a.png").write_bytes(PNG)
  (tmp_path / "a.html").write_text('<p>x</p><img src="a.png" alt="A grey square"><img src="gone.png" alt="A lost square">')
  (sample,), _ = items(tmp_path, "html_images", "*.html")
  assert (sample.text, sample.images, sample.source) == ("A grey square", (PNG,), "here: a.html a.png")


def test_chat_of_both_forms(tmp_path):
  (tmp_path / "a.png").write_bytes(PNG)
  url = "data:image/png;base64," + base64.b64encode(PNG).decode()
  openai = {"messages": [
      {"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "What?"}]},
      {"role": "assistant", "content": "A square.", "reasoning_content": "Four sides."}]}
  llava = {"image": "a.png", "conversations": [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A square."}]}
  for row, thinking in ((openai, {"reasoning_content": "Four sides."}), (llava, {})):
    sample = chat.sample(row, "s", "MIT", str(tmp_path))
    assert sample.images == (PNG,)
    assert sample.messages == (
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]}, {"role": "assistant", "content": "A square.", **thinking})


@pytest.mark.parametrize("row, reason", [
    ([], "JSON objects"), ({"x": 1}, "needs text"), ({"messages": [{"role": "robot", "content": ""}]}, "role"), ({"messages": [{"role": "user", "content": "a"}]}, "alternate"),
    ({"messages": [{"role": "user", "content": 3}]}, "content"), ({"conversations": [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "a"}]}, "marks"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x/a.png"}}]}]}, "no image"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,#"}}]}]}, "damaged")])
def test_a_bad_row_says_what_is_wrong(row, reason, tmp_path):
  with pytest.raises(ValueError, match=reason):
    chat.sample(row, "s", "MIT", str(tmp_path))


@pytest.mark.parametrize("block_bytes", [1, 7, 40, 64, 10**6])
def test_every_line_is_read_once_however_a_file_is_cut(tmp_path, block_bytes):
  texts = [f"text {i} " + "x" * (i % 9) for i in range(20)]
  (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"text": t}) for t in texts[:19]) + "\n\nnot json\n" + json.dumps({"text": texts[19]}))
  found, blocks = items(tmp_path, "json", "*.jsonl", block_bytes)
  assert [s.text for s in found if isinstance(s, Sample)] == texts and len({s.source for s in found if isinstance(s, Sample)}) == 20
  assert [type(s) for s in found].count(ValueError) == 1 and (len(blocks) > 1) == (block_bytes < 1000)


def test_a_json_list(tmp_path):
  (tmp_path / "a.json").write_text(json.dumps([{"text": "one"}, {"content": "two", "licence": "CC0-1.0"}]))
  assert [(s.text, s.licence, s.source) for s in items(tmp_path, "json", "*.json")[0]] == [("one", "MIT", "here: a.json#0"), ("two", "CC0-1.0", "here: a.json#1")]


def test_our_own_shards(tmp_path):
  given = [Sample("s", "MIT", f"text {i}", meta={"n": i}) for i in range(7)]
  sample_lib.write_shard(tmp_path / "a.array_record", given)
  found, blocks = items(tmp_path, "array_record", "*", block_bytes=(tmp_path / "a.array_record").stat().st_size // 3)
  assert found == given and len(blocks) == 2


def test_parquet(tmp_path):
  pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
  pq.write_table(pa.table({"text": [f"t{i}" for i in range(10)]}), tmp_path / "a.parquet", row_group_size=3)
  found, blocks = items(tmp_path, "parquet", "*", block_bytes=(tmp_path / "a.parquet").stat().st_size // 4)
  assert [s.text for s in found] == [f"t{i}" for i in range(10)] and len({s.source for s in found}) == 10 and len(blocks) == 4


def test_no_files_is_one_line(tmp_path):
  for path, reason in (("*.html", "no files match"), ("", "is a folder")):
    with pytest.raises(ValueError, match=reason):
      read.files({"kind": "html", "path": str(pathlib.Path(tmp_path) / path)}, tmp_path)
