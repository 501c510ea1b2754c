"""Chats, files of prompts and drawn answers, with a speaker whose engine is the tests' own."""

import json

import cv2
import numpy as np
import pytest

from bluelm_jax.inference import terminal
from bluelm_jax.inference.conversation import Speaker
from bluelm_jax.inference.request import Options
from bluelm_jax.inference.text import Piece
from tests.inference import small_engine

OPTIONS = Options(max_tokens=6)


@pytest.fixture
def speaker():
  """The random model, without a directory."""
  found = Speaker.__new__(Speaker)
  found.tokenizer, found.chat, found.think = small_engine.TOKENIZER, small_engine.chat(), small_engine.THINK
  found.engine = small_engine.shared_engine()
  return found


@pytest.fixture
def screen(tmp_path):
  cv2.imwrite(str(tmp_path / "screen.png"), np.full((80, 40, 3), 200, np.uint8))
  return tmp_path / "screen.png"


def said(lines):
  return "".join(lines)


def test_a_chat_remembers_until_told_to_forget(speaker, screen):
  """The second answer is that to both turns; a wrong line is told so and costs nothing; images go with the next turn."""
  asked = []
  original = speaker.answer
  speaker.answer = lambda messages, options: asked.append((messages, options)) or original(messages, options)
  lines = ["Hi", "/image /no/such.png", f"/image {screen}", "/think 5", "Where?", "/what", "/think much", "/new", "/think off", "Hi", "/quit", "never"]
  shown = list(terminal.chat(speaker, OPTIONS, lines, dim=False))
  assert len(asked) == 3
  first, second, third = (messages for messages, _ in asked)
  assert [m["role"] for m in second] == ["user", "assistant", "user"] and second[:1] == first
  assert [p["type"] for p in second[2]["content"]] == ["image", "text"] and len(third) == 1
  assert [(o.thinking, o.thinking_token_budget) for _, o in asked] == [(False, None), (True, 5), (False, None)]
  assert sum(s.startswith("error: ") for s in shown) == 2 and "/no/such.png" in said(shown) and "/draw PATH" in said(shown)
  assert said(shown).startswith(said(terminal.shown(original(first, OPTIONS), False)) + "\n")


def test_thoughts_are_dimmed():
  pieces = [Piece("think", "so"), Piece("think", " be it"), Piece("answer", "yes")]
  assert said(terminal.shown(pieces, False)) == "so be it\n\nyes"
  assert said(terminal.shown(pieces, True)) == "\x1b[2mso\x1b[0m\x1b[2m be it\x1b[0m\n\nyes"


def test_a_file_is_answered_as_its_lines_alone(speaker, screen):
  records = [{"prompt": "Hi"}, {"prompt": "Where?", "images": [screen.name], "max_tokens": 4}, {"prompt": "你好", "temperature": 1.0, "seed": 2}]
  path = screen.parent / "asked.jsonl"
  path.write_text("\n".join(map(json.dumps, records)))
  found = [json.loads(line) for line in terminal.many(speaker, path, OPTIONS)]
  assert [{k: r[k] for k in record} for r, record in zip(found, records)] == records
  assert found[0]["answer"] == said(p.text for p in speaker.reply("Hi", [], OPTIONS)) and found[0]["finish"] == "length"
  assert found[1]["answer"] == said(p.text for p in speaker.reply("Where?", [str(screen)], Options(max_tokens=4)))
  for line, words in (
      ("{}", 'line 1: it needs a "prompt"'), ('{"prompt": "x", "top_x": 3}', "top_x"), ('{"prompt": "x", "images": ["none.png"]}', "none.png"),
      ("no", "line 1: "), ('{"prompt": "x", "n": 2}', '"n" must be 1'), ('{"prompt": "x"}\n{"prompt": "x", "max_tokens": 400}', "prompt 2: .*exceed the context")):
    path.write_text(line)
    with pytest.raises(ValueError, match=words):
      list(terminal.many(speaker, path, OPTIONS))
    assert not speaker.engine.busy


def test_answers_are_drawn(screen, tmp_path):
  out = str(tmp_path / "drawn.png")
  assert terminal.draw(str(screen), "(500,250)", out) == f"point drawn in {out}"
  changed = np.argwhere((cv2.imread(out) != 200).any(-1))
  np.testing.assert_allclose(changed.mean(0), [0.25 * 79, 0.5 * 39], atol=0.6)
  assert terminal.draw(str(screen), "(100,100)(900,500)", out).startswith("box")
  changed = np.argwhere((cv2.imread(out) != 200).any(-1))
  np.testing.assert_allclose([changed.min(0), changed.max(0)], [[8, 4], [40, 35]], atol=1.6)
  for args, words in (((None, "(1,1)", out), "no image"), ((str(screen), "nothing", out), "points nowhere"), ((str(screen), "(1,1)", "x.what"), "ends in .png"),
      ((str(screen), "(1,1)", str(tmp_path / "none" / "x.png")), "a folder that exists")):
    with pytest.raises(ValueError, match=words):
      terminal.draw(*args)
