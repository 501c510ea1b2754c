"""What may be claimed, and that scorers score."""

import dataclasses

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from bluelm_jax.data.chat import ChatFormat
from bluelm_jax.data.tasks import reasoning
from bluelm_jax.data.tasks import screens
from bluelm_jax.data.tokenizer import Tokenizer
from bluelm_jax.evaluation import budgets
from bluelm_jax.evaluation import grounding
from bluelm_jax.evaluation import report
from bluelm_jax.evaluation import runner
from bluelm_jax.evaluation import stages
from bluelm_jax.evaluation import text
from bluelm_jax.evaluation.runner import Claim
from bluelm_jax.training import defaults
from tests.bench import machine

TEST = "assets/screens-test.array_record"


@pytest.mark.parametrize("value,control,n,p,holds", [
    (0.5, 0.1, 300, 0.0009, True), (0.5, 0.1, 299, 0.0001, False), (0.5, 0.1, 400, 0.001, False), (0.1, 0.5, 400, 0.0001, False)])
def test_a_claim_needs_items_significance_and_direction(value, control, n, p, holds):
  assert Claim("a", "b", value, control, n, p).holds == holds


@pytest.mark.parametrize("reply,box,expected", [
    ("button(500,060)", (0.4, 0.0, 0.6, 0.1), True),
    ("button(500,060)", (0.4, 0.1, 0.6, 0.2), False),
    ("(400,020)(600,100)", (0.45, 0.05, 0.55, 0.07), True),  # a box counts by its centre
    ("nothing here", (0, 0, 1, 1), False),
    ("(5000000,3)", (0, 0, 1, 1), False),
])
def test_hit(reply, box, expected):
  assert grounding.hit(reply, box) == expected


def test_items_are_many_unambiguous_and_drawn_from_a_seed():
  items = grounding.items(TEST, 420, 2026)
  assert len(items) == 420
  assert [(i.screen, i.label) for i in items] == [(i.screen, i.label) for i in grounding.items(TEST, 420, 2026)]
  assert max(np.unique([i.screen for i in items], return_counts=True)[1]) <= 3
  assert all(0 <= i.box[0] < i.box[2] <= 1 and 0 <= i.box[1] < i.box[3] <= 1 for i in items)
  by_screen = {(i.screen, i.label) for i in items}
  assert len(by_screen) == len(items)


def test_the_other_image_is_another_screen():
  items = grounding.items(TEST, 420, 2026)
  assert all(items[i].screen != items[(i + 3) % len(items)].screen for i in range(len(items)))


def test_a_right_answer_hits_its_own_element():
  """The coordinate grid is fine enough: true points lie in their boxes, with few exceptions (thin elements)."""
  items = grounding.items(TEST, 420, 2026)
  assert np.mean([grounding.hit(screens.point(i.box), i.box) for i in items]) > 0.9


def test_held_out_problems_are_never_trained_on():
  held = {p.question for p in text.problems(400, 2026)}
  assert len(held) == 400
  rng = np.random.default_rng(0)
  trained = {reasoning.make(rng).question for _ in range(20_000)}
  assert not held & trained


@pytest.mark.parametrize("change,words", [
    ({"reasoning_items": 10**9}, "evaluation.reasoning_items = 1000000000; use a whole number from 4 to 10000"),
    ({"reasoning_items": 3}, "use a whole number from 4"), ({"grounding_items": 0}, "use a whole number from 1"), ({"screen_items": -1}, "screen_items = -1"),
    ({"seed": -1}, "evaluation.seed = -1"), ({"text": "nowhere"}, "no data at nowhere"), ({"screen": "x"}, "an unknown key 'screen'"), ({"text": None}, "no key 'text'"),
    ({"after": "prose"}, "evaluation.after = 'prose' is no stage of the order; use text"),
    ({"comparisons": (("text", "sft"),)}, "use .kind, stage, control. with a kind of text, reasoning, lookup"),
    ({"comparisons": (("text", "sft", "prose"),)}, "evaluation.comparisons names 'prose', which is no stage of the order; use text")])
def test_an_evaluation_is_checked_before_it_starts(change, words):
  recipe = defaults.load(f"{machine.ROOT}/configs/recipes/miniature.py")
  config = recipe.evaluation
  config.update(change)
  if config.text is None:
    del config.text
  with pytest.raises(ValueError, match=words):
    runner.check(config, recipe.order)


def test_stages_are_compared_item_by_item(monkeypatch, tmp_path):
  """Each stage is measured once a kind; differences are paired, their sign is the stage's less the control's."""
  rng, measured = np.random.default_rng(0), []
  easy = rng.random(400) < 0.5
  answers = {"a": easy.astype(float), "b": (easy & (np.arange(400) % 4 > 0)).astype(float)}
  sizes = np.stack([rng.uniform(100, 900, 60), np.full(60, 100.0)], 1)
  texts = {"a": {"en": sizes - [5, 0]}, "b": {"en": sizes}}
  monkeypatch.setattr(stages, "Speaker", lambda name, slots: measured.append(name) or name)
  monkeypatch.setitem(stages._MEASURES, "reasoning", lambda name, config: answers[name])
  monkeypatch.setitem(stages._MEASURES, "text", lambda name, config: texts[name])
  config = ml_collections.ConfigDict({"comparisons": (("text", "a", "b"), ("reasoning", "a", "b"), ("reasoning", "b", "a"))})
  bits, gain, loss = stages.compare(config, {"a": "a", "b": "b"})
  assert measured == ["a", "b", "a", "b"]
  assert (bits.value - bits.control_value, bits.low, bits.high) == pytest.approx((-0.05,) * 3) and bits.better == "lower" and bits.n == 60
  assert gain.value - gain.control_value == pytest.approx(answers["a"].mean() - answers["b"].mean())
  assert 0 < gain.low < gain.value - gain.control_value < gain.high and (loss.low, loss.high) == pytest.approx((-gain.high, -gain.low), abs=0.01)
  results = runner.Results(comparisons=[bits, gain, loss])
  shown = report.table(results)
  assert "bits per byte, en" in shown and "-0.050 [-0.050, -0.050] (lower is better)" in shown
  results.budget_points = [budgets.Point(0, 0.2, 0.15, 0.25, 0.0, 1.0, 200), budgets.Point(32, 0.7, 0.64, 0.75, 25.3, 0.33, 200)]
  assert "32                           0.700   [0.640, 0.750]                25.3       33.0%    200" in report.table(results)
  assert report._budgets(results.budget_points).count("<circle") == 2 and report._budgets([]) == ""
  cells = report._comparisons(results)
  assert cells.count("class='n ok'") == 2 and cells.count("class='n no'") == 1


@dataclasses.dataclass
class Copier:
  """A language model that answers "Note K?" with the last note K it has seen within `reach` tokens."""

  chat: ChatFormat
  reach: int

  def apply(self, variables, tokens, **kwargs):
    del variables, kwargs
    said = jax.pure_callback(self.say, jax.ShapeDtypeStruct(tokens.shape, jnp.int32), tokens)
    return jax.nn.one_hot(said, self.chat.tokenizer.vocab_size)

  def say(self, tokens):
    out, ids = np.zeros_like(tokens), tokens[0].tolist()
    asked = self.chat.tokenizer.special_id("[|AI|]:")
    for at in (i for i, token in enumerate(ids) if token == asked):
      label = ids[at - 2]
      notes = [i for i in range(max(at - 2 - self.reach, 0), at - 2) if ids[i] == label and self.chat.tokenizer.decode(ids[i + 1 : i + 3]).isdigit()]
      for k, token in enumerate([*ids[notes[0] : notes[0] + 3], self.chat.tokenizer.end_id] if notes else ()):
        out[0, at + k] = token
    return out


def test_notes_are_found_as_far_as_a_model_reaches():
  chat = ChatFormat(Tokenizer(), None, 1)
  found = {reach: text.look_up(Copier(chat, reach), {}, chat, "assets/text-test.array_record", 300, 4, 5, 0) for reach in (10**6, 150, 0)}
  assert found[10**6].shape == (4, 5) and found[10**6].all()
  assert 0 < found[150].mean() < 1 and not found[0].any()


def test_there_are_only_so_many_items():
  """Asking for more ends soon: where draws bring nothing new."""
  one = {task: (1, 1) for task in reasoning.LENGTHS}
  with pytest.MonkeyPatch.context() as patch, pytest.raises(ValueError, match="there are not 9999 held-out problems"):
    patch.setattr(reasoning, "LENGTHS", one)
    text.problems(9999, 0)
  with pytest.raises(ValueError, match="has no 9999 elements"):
    grounding.items(TEST, 9999, 0)


@pytest.mark.parametrize("task", list(reasoning.LENGTHS))
def test_the_chains_end_in_the_answer(task):
  rng = np.random.default_rng(5)
  for _ in range(50):
    p = reasoning.make(rng, task)
    for style in ("long", "short", "none"):
      reply = reasoning.conversation(p, style)[1]
      full = (f"<think>{reply['reasoning_content']}</think>" if "reasoning_content" in reply else "") + reply["content"]
      assert reasoning.is_correct(p, full)
    assert not reasoning.is_correct(p, "") and not reasoning.is_correct(p, p.answer + "0")
