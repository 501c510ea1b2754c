"""Questions about screens, their answers, and the check of boxes against pixels: all without a browser."""

import numpy as np
import pytest

pytest.importorskip("apache_beam")

from bluelm_jax.data import forms
from bluelm_jax.data import sources
from bluelm_jax.data.sample import Sample
from bluelm_jax.data.tasks import actions
from bluelm_jax.data.tasks import screens
from bluelm_jax.pipeline import clean
from bluelm_jax.pipeline import defaults
from bluelm_jax.pipeline.decontaminate import tables
from bluelm_jax.pipeline.gui import boxes
from bluelm_jax.pipeline.gui import naming
from bluelm_jax.pipeline.gui import pages
from bluelm_jax.pipeline.gui import questions


def element(role, text, box, state="", **more):
  return {"role": role, "text": text, "color": "", "state": state, "box": list(box), **more}


# A settings page as elements.js reads it.
ELEMENTS = [
    element("title", "Settings", (0.05, 0.02, 0.5, 0.06)),
    element("tab", "General", (0.05, 0.1, 0.3, 0.14), "selected"), element("tab", "Privacy", (0.35, 0.1, 0.6, 0.14)),
    element("text", "Name", (0.05, 0.2, 0.2, 0.23)), element("input", "Bob", (0.25, 0.2, 0.8, 0.23), label="Name", value="Bob"),
    element("switch", "", (0.8, 0.3, 0.95, 0.33), "on", label="Dark mode"), element("switch", "", (0.8, 0.35, 0.95, 0.38), "off", label="Backup"),
    element("checkbox", "", (0.05, 0.4, 0.1, 0.43), "checked", label="News"), element("checkbox", "Adverts", (0.05, 0.45, 0.4, 0.48)),
    element("radio", "", (0.05, 0.5, 0.1, 0.53), "checked", label="Small"), element("radio", "", (0.2, 0.5, 0.25, 0.53), label="Large"),
    element("item", "More", (0.05, 0.55, 0.9, 0.58), "collapsed"), element("button", "Save", (0.1, 0.6, 0.4, 0.65)),
    element("button", "Delete", (0.5, 0.6, 0.9, 0.65), disabled=True), element("select", "France", (0.1, 0.7, 0.5, 0.74), label="Country", value="France"),
    element("text", "See your profile before others do.", (0.05, 0.8, 0.95, 0.83)), element("link", "your profile", (0.15, 0.8, 0.4, 0.83)),
    element("button", "Undo", (0.1, 0.86, 0.3, 0.9)), element("button", "Undo", (0.5, 0.86, 0.8, 0.9)),
    element("text", "A line that is cut", (0.05, 0.97, 0.9, 1.0), cut=True)]
META = dict(language="en", theme="light", caption="", above=[], below=[["title", "Danger zone"], ["button", "Save"], ["link", "Help"]], elements=ELEMENTS)
ALL = dict.fromkeys(questions.TASKS, 1.0)


def config(**more):
  return {"tasks": ALL, "turns": 5, "other_language": 0.0, "steps": 1000, "seed": 0, **more}


def sample(i, **meta):
  return Sample(f"here: {i}", "MIT", images=(b"x",), meta={**META, **meta})


def turns(s):
  """(question, answer) pairs."""
  said = [m["content"] if isinstance(m["content"], str) else m["content"][1]["text"] for m in s.messages]
  return list(zip(said[::2], said[1::2]))


def all_turns(task, count=150, **meta):
  return [pair for i in range(count) for pair in turns(questions.asked(sample(i, **meta), config(tasks={task: 1.0})))]


def named_in(question):
  """The elements that a question's quoted words and role mean, by the test's own reading."""
  found = []
  for e in ELEMENTS:
    said = e.get("label") or e["text"]
    if any(f"“{said}”{join}{role}" in question for role, join in ((screens.ROLE_NAMES[e["role"]][0], " "), (screens.ROLE_NAMES[e["role"]][1], ""))):
      found.append(e)
  return found


def inside(at, box):
  return box[0] <= at[0] <= box[2] and box[1] <= at[1] <= box[3]


def test_conversations_are_what_training_reads():
  for i in range(30):
    made = questions.asked(sample(i), config())
    assert made == questions.asked(sample(i), config()) and made.meta["elements"] == ELEMENTS
    assert len(forms.turns(made.messages)) == 10 and made.messages[0]["content"][0] == {"type": "image"}
    assert len({q for q, _ in turns(made)}) == 5
  assert len({turns(questions.asked(sample(i), config()))[0] for i in range(30)}) > 20
  assert turns(questions.asked(sample(0), config(seed=1))) != turns(questions.asked(sample(0), config()))


@pytest.mark.parametrize("language", ["en", "zh"])
def test_pointing_means_one_element(language):
  pairs = all_turns("ground", language=language)
  for question, answer in pairs:
    (asked,) = named_in(question)
    assert inside(screens.parse_point(answer), asked["box"]) and asked["text"] != "Undo", question
  assert len({q for q, _ in pairs}) > 30 and all(any("\u4e00" <= c <= "\u9fff" for c in q) == (language == "zh") for q, _ in pairs)
  for question, answer in all_turns("box", language=language):
    (asked,) = named_in(question)
    corners = [int(v) / 1000 for v in answer.replace(")(", ",").strip("()").split(",")]
    np.testing.assert_allclose(corners, asked["box"], atol=0.0011)


def test_a_coarse_grid_asks_only_what_it_can_point_at():
  for i in range(100):
    for question, answer in turns(questions.asked(sample(i), config(tasks={"ground": 1.0}, steps=25))):
      (asked,) = named_in(question)
      x, y = screens.parse_point(answer)
      assert inside((x, y), asked["box"]) and round(x * 1000) in screens.COORDINATES


def test_referring_is_the_way_back():
  seen = set()
  for question, answer in all_turns("refer"):
    at = screens.parse_point(question)
    under = [e for e in ELEMENTS if inside(at, e["box"])]
    assert answer in {naming.describe(e, "en") for e in under}
    seen.add(answer)
  assert {"on switch “Dark mode”", "button “Save”", "selected tab “General”", "checked checkbox “News”"} <= seen


def test_reading_gives_the_whole_text_of_a_box():
  said = {a for _, a in all_turns("read")}
  assert {"Settings", "See your profile before others do.", "your profile", "Bob", "France"} <= said and "A line that is cut" not in said
  assert not all_turns("read_all", 20)  # unless its pixels were checked
  uncut = [e for e in ELEMENTS if not e.get("cut")]
  (_, text), *_ = all_turns("read_all", 3, elements=uncut, all_text=True)
  assert text == "Settings\nGeneral Privacy\nName Bob\nAdverts\nMore\nSave Delete\nFrance\nSee your profile before others do.\nUndo Undo"
  assert not all_turns("read_all", 20, all_text=True)  # with a line that is cut


def test_states_are_true():
  facts = {
      ("“Dark mode” switch", "on"): True, ("“Dark mode” switch", "off"): False, ("“Backup” switch", "on"): False, ("“Backup” switch", "off"): True,
      ("“News” checkbox", "checked"): True, ("“News” checkbox", "unchecked"): False, ("“Adverts” checkbox", "checked"): False,
      ("“Adverts” checkbox", "unchecked"): True, ("“More” list item", "expanded"): False, ("“More” list item", "collapsed"): True,
      ("“Delete” button", "disabled"): True, ("“Save” button", "disabled"): False, ("“Small” radio button", "checked"): True}
  seen, which = set(), set()
  for question, answer in all_turns("state", 400):
    if question.startswith(("Which", "What tab")):
      which.add(answer)
    elif question.startswith("What is"):
      assert answer == {"Name": "Bob", "Country": "France"}[question.split("“")[1].split("”")[0]]
    elif question.startswith("Is the "):
      name, state = question.removeprefix("Is the ").removesuffix("?").rsplit(" ", 1)
      assert answer == ("Yes." if facts.get((name, state), state != "disabled" and (name, state) == ("“Large” radio button", "unchecked")) else "No."), question
      seen.add((name, state))
    else:
      assert question.startswith("Can the ") and (answer == "No.") == ("Delete" in question)
  assert set(facts) <= seen and which == {"General", "Small"}


def test_actions_reach_their_goals():
  kinds, done = set(), set()
  for question, answer in all_turns("act", 400):
    action = actions.parse(answer)
    kinds.add(action.kind)
    if action.kind == "scroll":
      assert action.text == "down" and ("Danger zone" in question or "Help" in question)  # Save stands here too
      continue
    (asked,) = named_in(question)
    assert asked["text"] not in ("Undo", "Delete")
    if action.kind == "done":
      done.add(asked.get("label") or asked["text"])
      wants_off = any(w in question for w in ("Turn off", " off.", "Uncheck", "Clear"))
      assert asked["state"] in (("off", "") if wants_off else ("on", "checked", "selected")), question
    else:
      assert inside(action.at, asked["box"])
      if action.kind == "type":
        assert asked["role"] == "input" and action.text in question
      elif asked["role"] == "switch":
        assert (asked["state"] == "on") == ("off" in question.lower())
  assert kinds == {"click", "type", "scroll", "done"} and {"Dark mode", "Backup", "News", "Adverts", "General"} <= done


@pytest.mark.parametrize("reply,expected", [
    ("click(500,060)", ("click", (0.5, 0.06), "")), (" done() ", ("done", None, "")), ("scroll(up)", ("scroll", None, "up")),
    ('type(001,999,"say \\"hi\\"")', ("type", (0.001, 0.999), 'say "hi"')), (actions.type_("(001,002)", '甲"\n'), ("type", (0.001, 0.002), '甲"\n')),
    ("click(500, 060)", None), ("click(500,060)click(1,1)", None), ("scroll(left)", None), ('type(1,2,"\\q")', None), ("I click(1,2)", None)])
def test_actions_have_one_form(reply, expected):
  assert actions.parse(reply) == (expected and actions.Action(*expected))


def test_languages_mix():
  count = sum(any("\u4e00" <= c <= "\u9fff" for c in turns(questions.asked(sample(i), config(other_language=0.3)))[0][0]) for i in range(300))
  assert 60 < count < 120
  (question, answer), *_ = turns(questions.asked(sample(0, language="zh"), config(tasks={"caption": 1.0})))
  assert answer.startswith("浅色界面“Settings”")


def test_a_link_that_is_a_whole_heading_has_a_name():
  title, link = element("title", "News", (0.1, 0.1, 0.5, 0.2)), element("link", "News", (0.1, 0.1, 0.52, 0.2))
  assert naming.names([title, link], "en") == {0: "“News” title", 1: "“News” link"}
  assert naming.names([title, element("link", "news", (0.1, 0.5, 0.5, 0.6))], "en") == {}


def test_shipped_screens_can_be_asked_about():
  shard = sources.read_shard("assets/screens-select.array_record")
  for i in range(40):
    s = shard[i]
    for question, answer in turns(questions.asked(s, config(turns=8))):
      if (at := screens.parse_point(answer)) and "“" not in answer:
        assert any(inside(at, e["box"]) for e in s.meta["elements"]) or actions.parse(answer)
      assert question and answer


def test_boxes_that_hold_their_text_pass_and_others_do_not():
  bare = np.full((100, 50, 3), 255, np.uint8)
  shown = bare.copy()
  shown[10:20, 5:20] = shown[50:60, 30:45] = 0
  right = [(4, 9, 21, 21), (29, 49, 46, 61)]
  assert boxes.inside(bare, shown, right, 2) == 2
  assert boxes.inside(bare, shown, right[:1], 2) == 0  # text outside every box
  assert boxes.inside(bare, shown, [*right, (1, 80, 10, 90)], 2) == 2  # a box without text
  assert boxes.inside(bare, shown, [(4, 9, 21, 17), right[1]], 2) == 2 and boxes.inside(bare, shown, [(4, 9, 21, 15), right[1]], 2) == 0  # slack


def test_boxes_of_a_group_do_not_touch():
  found = boxes.groups({0: (0, 0, 10, 10), 1: (5, 5, 20, 20), 2: (13, 0, 20, 4), 3: (30, 30, 40, 40)}, 2)
  assert found == [[0, 2, 3], [1]]


def test_a_checked_share_is_a_share():
  assert 80 < sum(boxes.chosen(f"page {i}", 0.1) for i in range(1000)) < 120
  assert all(boxes.chosen(str(i), 1.0) for i in range(100)) and not any(boxes.chosen(str(i), 0.0) for i in range(100))


def test_a_page_is_looked_at_from_top_to_end():
  assert pages.scrolls(500, 800, 3) == [0] and pages.scrolls(1000, 800, 3) == [0, 200]
  assert pages.scrolls(10_000, 800, 3) == [0, 4600, 9200] and pages.scrolls(10_000, 800, 1) == [0]


def test_cleaning_asks_drops_and_keeps_states_apart():
  picture = sources.read_shard("assets/screens-select.array_record")[0].images[0]
  c = defaults.dataset()
  c.gui.tasks = {"ground": 1.0}

  def one(i, image, **meta):
    return Sample(f"here: {i}", "MIT", images=(image,), meta={**META, **meta})

  samples = [one(0, picture), one(1, picture), one(2, picture + b"\0"), one(3, picture, text_boxes=[4, 5]), one(4, picture, text_boxes=[5, 5])]
  found = clean.clean(samples, c.to_dict(), tables([], []))
  assert {rule: n for rule, (n, _) in found.removed.items()} == {"text_outside_boxes": 1}
  assert len(set(found.arrays["key"].tolist())) == 2 and not found.arrays["image"].any()  # equal bytes are copies, others are not
  assert all(s.messages and s.meta["elements"] and s.meta["ability"] == "grounding" for s in found.samples)


SCREENS = dict(kind="screens", path="package.json", licence="MIT")
PAGES = dict(kind="pages", path="*.html", licence="MIT")


@pytest.mark.parametrize("source,questions_,reason", [
    (dict(PAGES, split="train"), {}, "split, which is for"), (dict(SCREENS, themes=("dark",)), {}, "themes, which is for"), (dict(SCREENS, language="en"), {}, "has a language"),
    (dict(SCREENS, split="dev"), {}, "split 'dev'"), (dict(SCREENS, count=0), {}, "count 0"), (dict(SCREENS, chinese=1.5), {}, "chinese 1.5"),
    (dict(PAGES, check=-0.1), {}, "check -0.1"), (dict(PAGES, themes=("blue",)), {}, "themes blue"), (dict(PAGES, devices=("phone",)), {}, "devices"),
    (dict(PAGES, devices={"tv": dict(width=1920, height=1080, ratio=1)}), {}, "no touch"), (dict(PAGES, devices={"tv": dict(width=9, height=9, ratio=1, touch=False)}), {}, "9 x 9"),
    (dict(PAGES, timeout=0), {}, "timeout 0"), (PAGES, {"tasks": {"find": 1.0}}, "'find'"), (PAGES, {"tasks": {"ground": 0.0}}, "ground is 0"),
    (PAGES, {"turns": 0}, "turns 0"), (PAGES, {"steps": 2000}, "steps 2000"), (PAGES, {"other_language": 2.0}, "other_language")])
def test_bad_keys_are_one_line(source, questions_, reason):
  c = defaults.dataset()
  c.sources.gui = source
  with c.gui.unlocked():
    c.gui.update(questions_)
  with pytest.raises(ValueError, match=reason) as error:
    defaults.check(c)
  assert "\n" not in str(error.value)
