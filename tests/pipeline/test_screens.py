"""Questions that are made anew from a screen at every visit."""

import re

import numpy as np
import pytest

from bluelm_jax.data import sources
from bluelm_jax.data.tasks import screens


@pytest.fixture(scope="module")
def shard():
  return sources.read_shard("assets/screens-select.array_record")


TASKS = dict(ground=1.0, refer=1.0, list=1.0, caption=1.0, read=1.0, color=1.0)


def test_answers_point_at_what_was_asked(shard):
  """Every point of a grounding answer or list lies in an element of that name (or at a thin one's nearest step)."""
  rng, near = np.random.default_rng(0), []
  for i in range(40):
    sample = shard[i]
    elements, language = sample.meta["elements"], sample.meta["language"]
    for label, e in screens.targets(elements, language):
      at = screens.parse_point(screens.point(e["box"]))
      box = e["box"]
      near.append(abs(at[0] - (box[0] + box[2]) / 2) <= 0.0201 and abs(at[1] - (box[1] + box[3]) / 2) <= 0.0201)
      assert screens.name(e, language) == label
  assert all(near) and len(near) > 100


def test_a_conversation_never_asks_twice_and_keeps_its_length(shard):
  rng = np.random.default_rng(1)
  for i in range(60):
    sample = shard[i]
    messages = screens.conversation(np.zeros((4, 4, 3), np.uint8), sample.meta["elements"], sample.meta, TASKS, 4, rng)
    assert 2 <= len(messages) <= 8 and [m["role"] for m in messages[:2]] == ["user", "assistant"]
    asked = [m["content"] if isinstance(m["content"], str) else m["content"][1]["text"] for m in messages[::2]]
    assert len(asked) == len(set(asked))
    pointed = [label for m in messages[1::2] for label in set(re.findall(r"(?:^|;)(?: ?[AB]:)?([^;()]+)\(", m["content"] + ";" + m.get("reasoning_content", "")))]
    assert len(pointed) == len(set(pointed))  # no later turn repeats a place


def test_color_questions_are_true_and_even(shard):
  """The answer is the colour of the element where the chain starts, the top or the bottom one, and stands first as often as second."""
  rng, first, ordered = np.random.default_rng(2), [], 0
  for i in range(160):
    sample = shard[i]
    made = screens.color(sample.meta["elements"], sample.meta, rng)
    if made is None:
      continue
    question, chains, answer = made
    listed = chains["long"].split(";")
    bottom = "bottom" in question or "最下面" in question
    assert [int(x[-4:-1]) for x in listed] == sorted((int(x[-4:-1]) for x in listed), reverse=bottom)
    assert bottom or len(listed) == 1 or "top" in question or "最上面" in question
    assert listed[0].startswith(chains["short"]) and listed[0].startswith(answer)
    role = chains["short"].removeprefix(answer)
    same = [label for e in sample.meta["elements"] if (label := screens.name(e, sample.meta["language"])).endswith(role.strip())]
    assert len(listed) <= 3
    words = re.findall(r" (\w+) or (\w+)\?|是(\w+)还是(\w+)\?", question)[0]
    words = [w for w in words if w]
    assert answer.strip() in words and words[0] != words[1]
    first.append(answer.strip() == words[0])
    if not all(answer in x for x in listed):  # of several colours, two that are there, so that the order decides
      assert all(any(w in x for x in same) for w in words)
      ordered += 1
  assert len(first) > 80 and 0.35 < np.mean(first) < 0.65 and ordered > 10


def test_augmenting_moves_boxes_with_pixels():
  """A black square stays under its box."""
  rng = np.random.default_rng(3)
  for _ in range(30):
    image = np.full((200, 100, 3), 255, np.uint8)
    image[60:120, 30:70] = 0
    moved, elements = screens.augment(image, [{"role": "button", "box": [0.3, 0.3, 0.7, 0.6]}], rng)
    ys, xs = np.nonzero(moved[..., 0] < 128)
    l, t, r, b = elements[0]["box"]
    np.testing.assert_allclose([xs.min() / 100, ys.min() / 200, (xs.max() + 1) / 100, (ys.max() + 1) / 200], [l, t, r, b], atol=0.02)


def test_cells_are_named_by_what_they_show():
  elements = [
      {"role": "button", "color": "red", "state": "", "box": [0.0, 0.0, 0.5, 0.5]}, {"role": "switch", "color": "", "state": "on", "box": [0.8, 0.8, 0.9, 0.9]}]
  cells = np.array([[0.0, 0.0, 0.25, 0.25], [0.75, 0.75, 1.0, 1.0], [0.6, 0.1, 0.8, 0.3]])
  assert screens.cell_words(cells, elements, "en") == [
      (" button", " red", "(260,", "260)"), (" switch", " on", "(860,", "860)"), (screens.NOTHING, "", "", "")]
  assert screens.cell_words(cells, elements, "zh")[0][:2] == ("按钮", "红色")
