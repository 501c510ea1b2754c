"""The forms of conversations and documents, and what is refused in one line."""

import base64
import errno
import io

import hypothesis
import hypothesis.strategies as st
import numpy as np
from PIL import Image
import pytest

from bluelm_jax.data import faults
from bluelm_jax.data import files
from bluelm_jax.data import forms
from bluelm_jax.data import sample as sample_lib
from bluelm_jax.data import sources
from bluelm_jax.data.chat import ChatFormat
from bluelm_jax.data.tokenizer import Tokenizer
from bluelm_jax.models import presets

MODEL = presets.miniature()
CHAT = ChatFormat(Tokenizer(), MODEL.anyres, MODEL.tokens_per_tile)


def png(value, size=(112, 112)):
  out = io.BytesIO()
  Image.fromarray(np.full((*size, 3), value, np.uint8)).save(out, "PNG")
  return out.getvalue()


RED, BLUE = png(200), png(20)
URI = "data:image/png;base64," + base64.b64encode(RED).decode()
IMAGE, ASK, SAY = {"type": "image"}, {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes"}


def text(t):
  return {"type": "text", "text": t}


@pytest.mark.parametrize("record,messages,images", [
    ({"messages": [ASK, SAY]}, [ASK, SAY], ()),
    ({"messages": [{"role": "system", "content": "Be"}, {**ASK, "reasoning_content": None}, {**SAY, "reasoning_content": "hm"}]},
     [{"role": "system", "content": "Be"}, ASK, {**SAY, "reasoning_content": "hm"}], ()),
    ({"messages": [{"role": "user", "content": [text("See"), {"type": "image_url", "image_url": {"url": URI}}, {"type": "image", "image": BLUE, "text": None}]}, SAY]},
     [{"role": "user", "content": [text("See"), IMAGE, IMAGE]}, SAY], (RED, BLUE)),
    ({"messages": [{"role": "user", "content": [IMAGE, text("What?")]}, SAY], "images": [BLUE]}, [{"role": "user", "content": [IMAGE, text("What?")]}, SAY], (BLUE,)),
    ({"messages": [{"role": "user", "content": "<image>\nWhat?"}, {"role": "assistant", "content": [text("It"), text("self")]}], "image": base64.b64encode(RED).decode()},
     [{"role": "user", "content": [IMAGE, text("What?")]}, {"role": "assistant", "content": "Itself"}], (RED,)),
    ({"conversations": [{"from": "system", "value": "Be"}, {"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "Red"}], "image": {"bytes": RED, "path": None}},
     [{"role": "system", "content": "Be"}, {"role": "user", "content": [IMAGE, text("What?")]}, {"role": "assistant", "content": "Red"}], (RED,)),
    ({"conversations": [{"from": "human", "value": "this\n<image>\nor <image>?"}, {"from": "gpt", "value": "That"}], "image": [URI, {"bytes": BLUE}]},
     [{"role": "user", "content": [text("this"), IMAGE, text("or "), IMAGE, text("?")]}, {"role": "assistant", "content": "That"}], (RED, BLUE)),
    ({"messages": [{"role": "system", "content": "Be"}, ASK, SAY], "images": [RED, BLUE]},  # none marked
     [{"role": "system", "content": "Be"}, {"role": "user", "content": [IMAGE, IMAGE, text("Hi")]}, SAY], (RED, BLUE))])
def test_conversations(record, messages, images):
  found = forms.sample(record, "x.jsonl")
  assert (list(found.messages), found.images, found.text) == (messages, images, "")
  CHAT.example(sources.with_pictures(found, CHAT))
  assert sample_lib.decode(sample_lib.encode(found)) == found  # lies in a shard as it is


@pytest.mark.parametrize("record,words,images", [
    ({"text": "only"}, "only", ()), ({"text": "the <image> tag"}, "the <image> tag", ()), ({"text": "a<image>b<image>", "images": [RED, BLUE]}, "a<image>b<image>", (RED, BLUE)),
    ({"text": "a caption", "image": RED}, "<image>a caption", (RED,)), ({"texts": ["a", None, "b", "c", None], "images": [None, RED, None, None, BLUE]}, "a<image>b\n\nc<image>", (RED, BLUE))])
def test_documents(record, words, images):
  found = forms.sample(record, "x.jsonl")
  assert (found.text, found.images, found.messages) == (words, images, ())


def test_other_fields_are_kept():
  found = forms.sample({"text": "a", "source": "web", "license": "MIT", "id": 3, "score": 0.5, "empty": None}, "x.jsonl")
  assert (found.source, found.licence, found.meta) == ("web", "MIT", {"id": 3, "score": 0.5})
  assert forms.sample({"text": "a"}, "x.jsonl").source == "x.jsonl"


@pytest.mark.parametrize("record", [
    {"prompt": "Hi", "chosen": "Yes", "rejected": "No"}, {"prompt": [ASK], "chosen": [SAY], "rejected": [{"role": "assistant", "content": "No"}]},
    {"chosen": [ASK, SAY], "rejected": [ASK, {"role": "assistant", "content": "No"}]}, {"prompt": "Hi", "chosen": [ASK, SAY], "rejected": [ASK, {"role": "assistant", "content": "No"}]}])
def test_preferences(record):
  found = forms.sample(record, "x.jsonl")
  assert (found.messages, found.meta) == ((ASK,), {"chosen": [SAY], "rejected": [{"role": "assistant", "content": "No"}]})
  pair = sources.preference(found, CHAT)
  said = [CHAT.tokenizer.decode(e.targets[e.loss_weights > 0]) for e in pair]
  assert said == ["Yes<|endoftext|>", "No<|endoftext|>"]


def test_a_preference_about_an_image_of_many_turns():
  prompt = [{"role": "user", "content": "<image>What?"}, SAY, ASK]
  found = forms.sample({"prompt": prompt, "chosen": "A", "rejected": "B", "images": [RED]}, "x.jsonl")
  for example, answer in zip(sources.preference(found, CHAT), "AB"):
    assert len(example.tiles) and CHAT.tokenizer.decode(example.targets[example.loss_weights > 0]) == f"{answer}<|endoftext|>"


@pytest.mark.parametrize("record,kind,words", [
    ({}, "record", "has the fields of nothing; give messages, conversations, text"), ({"txt": "a", "id": 1}, "record", "has the fields txt, id; give messages"),
    ({"text": 3}, "record", "has the fields text"), ({"messages": [ASK, SAY], "tools": []}, "record", "has tools"),
    ({"messages": []}, "conversation", "no list of messages"), ({"messages": "Hi"}, "conversation", "no list of messages"), ({"messages": ["Hi"]}, "conversation", "is a str; give an object"),
    ({"messages": [{"role": "robot", "content": "x"}]}, "conversation", "of role 'robot'; use system, user, assistant"), ({"messages": [{"content": "x"}]}, "conversation", "of role 'None'"),
    ({"messages": [{**ASK, "name": "Jo", "tool_calls": []}]}, "conversation", "has a message with name, tool_calls; its fields are role, content, reasoning_content"),
    ({"messages": [{"role": "user", "content": 3}]}, "conversation", "whose content is no text"), ({"messages": [ASK, {**SAY, "reasoning_content": 3}]}, "conversation", "whose content is no text"),
    ({"messages": [{**ASK, "reasoning_content": "hm"}, SAY]}, "conversation", "only the assistant thinks"), ({"messages": [ASK, {"role": "assistant", "content": [IMAGE]}]}, "conversation", "has an image in a assistant message"),
    ({"messages": [{"role": "user", "content": [{"type": "audio"}]}]}, "conversation", "of type 'audio' that cannot be read; use text, image or image_url"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "conversation", "of type 'image_url' that cannot"), ({"messages": [{"role": "user", "content": ["x"]}]}, "conversation", "is a str; give an object"),
    ({"messages": [{"role": "user", "content": "<image>"}, SAY]}, "conversation", "marks 1 images in its messages and has 0; give one for each <image>"),
    ({"messages": [{"role": "user", "content": "<image>"}, SAY], "images": [RED, RED]}, "conversation", "marks 1 images in its messages and has 2"),
    ({"messages": [{"role": "user", "content": [{"type": "image", "image": RED}]}, SAY], "images": [RED]}, "conversation", "both in its messages and beside them"),
    ({"messages": [SAY], "image": RED}, "conversation", "no user who shows them"),
    ({"conversations": [{"from": "bing", "value": "x"}]}, "conversation", "has a turn from 'bing'; use system, human, gpt"), ({"conversations": [{"from": ["human"], "value": "x"}]}, "conversation", "has a turn from"),
    ({"conversations": [{"from": "human"}]}, "conversation", "no list of"), ({"conversations": {"from": "human"}}, "conversation", "no list of"),
    ({"text": "a<image>", "images": [RED, RED]}, "document", "marks 1 images in its text and has 2"), ({"texts": ["a", "b"], "images": [None]}, "document", "do not alternate"),
    ({"texts": ["a", "b"], "images": [None, RED]}, "document", "do not alternate"), ({"texts": ["<image>"], "images": [None]}, "document", "the place in the list"), ({"texts": [3], "images": [None]}, "document", "or no text"),
    ({"text": "a", "image": "no.png"}, "image", "has its image at d/no.png, where none can be read"), ({"text": "a", "image": "https://x.org/a.png"}, "image", "download it and give its path"),
    ({"text": "a", "image": "ftp://x.org/a.png"}, "image", "download it and give its path"), ({"text": "a", "image": "simplecache::gs://b/a.png"}, "image", "download it"),
    ({"text": "a", "image": "Qk0+" * 2000}, "image", "has its image at d/Qk0+"), ({"text": "a", "image": "a\0.png"}, "image", "null byte"),
    ({"text": "a", "image": "data:image/png;base64,****"}, "image", "is no base64"), ({"text": "a", "image": 3}, "image", "is a int; give a path"), ({"text": "a", "image": {"bytes": None}}, "image", "is a NoneType"),
    ({"prompt": "Hi", "chosen": "Yes"}, "conversation", "has no rejected"), ({"prompt": "Hi", "chosen": "Yes", "rejected": "Yes"}, "conversation", "the same answer chosen and rejected"),
    ({"prompt": [ASK, SAY], "chosen": "Yes", "rejected": "No"}, "conversation", "is no preference; give a prompt that ends with the user"),
    ({"chosen": [SAY], "rejected": [ASK, SAY]}, "conversation", "is no preference"), ({"prompt": "Hi", "chosen": [ASK], "rejected": "No"}, "conversation", "is no preference"),
    ({"prompt": "Hi", "chosen": [{"role": "user", "content": "<image>"}, SAY], "rejected": "No"}, "conversation", "has an image in an answer")])
def test_what_is_refused(record, kind, words):
  with pytest.raises(faults.Fault) as error:
    forms.sample(record, "d/x.jsonl")
  assert words in str(error.value) and error.value.kind == kind and "\n" not in str(error.value)


def test_a_disk_that_fails_is_not_the_records_fault(monkeypatch):
  def fail(path):
    raise OSError(errno.EIO, "Input/output error", path)

  monkeypatch.setattr(files, "read", fail)
  with pytest.raises(OSError, match="Input/output"):
    forms.sample({"text": "a", "image": "a.png"}, "d/x.jsonl")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.sampled_from(["", "<image>", "user", "assistant", "text", "image", "human", "gpt", "a.png", URI]) | st.binary(max_size=3),
    lambda v: st.lists(v, max_size=3) | st.dictionaries(
        st.sampled_from(["messages", "conversations", "role", "content", "from", "value", "type", "text", "image", "images", "texts", "chosen", "rejected", "prompt", "bytes", "image_url"]), v, max_size=4),
    max_leaves=12)


@hypothesis.settings(max_examples=400, deadline=None)
@hypothesis.given(st.dictionaries(st.sampled_from(["messages", "conversations", "text", "texts", "image", "images", "chosen", "rejected", "prompt"]), JSON, max_size=4))
def test_nothing_but_a_fault_comes_of_strange_records(record):
  try:
    found = forms.sample(record, "x.jsonl")
    if found.messages and "chosen" not in found.meta:
      sources.with_pictures(found, CHAT)
  except ValueError as e:
    assert "\n" not in str(e)


def test_a_window_cuts_no_image():
  """Every window of a document with images is a part of the whole, its images whole and its tiles its own."""
  texts, pictures = ["one two three " * 6, "middle " * 12, "end of it"], [np.full((112, 112, 3), 50, np.uint8), np.full((224, 112, 3), 90, np.uint8)]
  whole = CHAT.document(texts, pictures, 10_000, np.random.default_rng(0))
  shown, n = whole.vision_index >= 0, MODEL.tokens_per_tile
  assert len(whole.tiles) == 3 and shown.sum() == 3 * n and not whole.loss_weights[:-1][shown[1:]].any()
  assert np.array_equal(CHAT.tokenizer.encode("end of it") + [CHAT.tokenizer.end_id], whole.targets[-(len(CHAT.tokenizer.encode("end of it")) + 1) :])
  assert (whole.loss_weights > 0).sum() == len(whole.targets) - 3 * n - 3 - 4  # tile marks and the ends of images are given
  lengths = set()
  for seed in range(150):
    w = CHAT.document(texts, pictures, 70, np.random.default_rng(seed))
    at = next(i for i in range(len(whole.tokens)) if np.array_equal(whole.tokens[i : i + len(w.tokens)], w.tokens) and np.array_equal(whole.loss_weights[i : i + len(w.tokens)], w.loss_weights)
              and np.array_equal(whole.targets[i : i + len(w.tokens)], w.targets))
    here = whole.vision_index[at : at + len(w.tokens)]
    kept = here[here >= 0]
    assert len(kept) in (0, n, 2 * n, 3 * n) and np.array_equal(w.vision_index[w.vision_index >= 0], np.arange(len(kept)))
    assert np.array_equal(w.tiles, whole.tiles[np.unique(kept // n)]) and len(w.tiles) == len(w.tile_places) == len(kept) // n
    assert len(w.tokens) <= 70 or len(kept) == len(here) - 4
    lengths.add(len(w.tiles))
  assert len(lengths) > 1
