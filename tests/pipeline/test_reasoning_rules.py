"""Questions, replies, rules, votes and choices of reasoning data: each by what it is there for."""

import json

import numpy as np
import pytest

pytest.importorskip("rensa")

from bluelm_jax.pipeline import decontaminate
from bluelm_jax.pipeline import defaults
from bluelm_jax.pipeline import tokens
from bluelm_jax.pipeline.reasoning import choose
from bluelm_jax.pipeline.reasoning import compare
from bluelm_jax.pipeline.reasoning import generated
from bluelm_jax.pipeline.reasoning import judge
from bluelm_jax.pipeline.reasoning import prompts
from bluelm_jax.pipeline.reasoning import questions
from bluelm_jax.pipeline.reasoning import replies
from bluelm_jax.pipeline.reasoning import rewrite
from bluelm_jax.pipeline.reasoning import rules
from bluelm_jax.pipeline.reasoning import verifier
from bluelm_jax.pipeline.reasoning import vote

PNG = "data:image/png;base64,iVBORw0KGgo="


def path(text, thought="", finish="stop"):
  return replies.path({"text": text, "thought": thought, "finish": finish})


def question(**row):
  return questions.sample({"question": "What is it?", **row}, "s#0", "MIT", ".")


# Replies.


def test_a_thought_is_a_field_or_between_marks():
  for found in (path("So \\boxed{7}.", "3+4=7"), path("<think>3+4=7</think>So \\boxed{7}."), path("3+4=7</think>\nSo \\boxed{7}.")):
    assert found == ("3+4=7", "So \\boxed{7}.", "7", (1, 1), False)


@pytest.mark.parametrize("text, answer", [
    (r"first \boxed{41}, then \boxed{\frac{1}{2}}.", r"\frac{1}{2}"), ("The final answer is: 12.", "12"), ("所以答案是：甲。", "甲"), (r"cut off \boxed{1", ""), ("no more", ""),
    (r"<think>\boxed{1}</think>It is two.", "")])
def test_the_answer_is_what_is_said_last(text, answer):
  assert path(text).answer == answer


# Rules of form: the first of each pair breaks the rule, the second keeps it.


GOOD = "<think>3+4=7</think>\\boxed{7}"


@pytest.mark.parametrize("rule, bad", [
    (rules.truncated, path(GOOD, finish="length")), (rules.thought_missing, path("\\boxed{7}")), (rules.thought_missing, path("<think> </think>\\boxed{7}")),
    (rules.thought_unclosed, path("<think>3+4=7 \\boxed{7}")), (rules.thought_repeated, path(f"<think>a</think>{GOOD}")), (rules.thought_repeated, path(GOOD, "a")),
    (rules.answer_missing, path("<think>3+4=7</think>Seven.")), (rules.answer_leaked, path("<think>The answer given is 7, so</think>\\boxed{7}")),
    (rules.answer_leaked, path("<think>参考答案是7，所以</think>\\boxed{7}")), (rules.answer_leaked, path("<think>According to the reference this holds.</think>\\boxed{7}"))])
def test_rules_of_form(rule, bad):
  assert rule(bad) and not rule(path(GOOD))
  assert [r for r in rules.FORM if r(bad)][0] in (rule, rules.thought_unclosed)


def test_a_path_may_speak_of_the_correct_answer():
  assert not rules.answer_leaked(path("<think>So the correct answer is 7; the given equation says so. 所以答案是7</think>\\boxed{7}"))


def test_limits_of_a_thought():
  assert rules.thought_short(7, 8) and not rules.thought_short(8, 8)
  assert rules.thought_long(9, 8) and not rules.thought_long(8, 8)


@pytest.mark.parametrize("thought, asked, other", [
    ("we add the three numbers and then take the half of all", "zh", True), ("先把三个数字加起来，再取一半", "en", True), ("先把三个数字加起来，再取一半", "zh", False),
    ("3+4=7; 7*2=14; 14-5=9; 9/3=3", "zh", False), ("let the word 苹果 stand for what was bought in the shop", "en", False), ("用 Python 的 list 和 dict 来存储三个数字", "zh", False)])
def test_the_language_is_the_questions(thought, asked, other):
  assert rules.language_other(path("\\boxed{7}", thought), asked) is other


def loop(text, language="en"):
  return rules.loops([text, ""], [language, "en"], tokens.words([text, ""]))[0]


def test_loops_are_found_and_restating_is_not():
  sentence = "I look at the number again and see that it is even, so the other one must be odd. "
  rng = np.random.default_rng(0)
  chain = " ".join(f"Step {i}: add {rng.integers(99)} to {rng.integers(999)} and carry {rng.integers(9)}." for i in range(40))
  assert loop(chain + sentence * 20) and loop(chain + "wait, " * 30) and loop("先加三再减二，" * 12, "zh") and loop("!" * 60)
  assert not loop(chain) and not loop(chain + sentence + "So: " + sentence) and not loop("")


# Answers.


@pytest.mark.parametrize("check, reference, answer, same", [
    ("choice", "B", "(b)", True), ("choice", "B", "B. 12 apples", True), ("choice", "B", "C", False), ("choice", "A", "An apple", False), ("choice", "A", "A and B", False),
    ("number", "1200", "1,200 m", True), ("number", "0.75", "3/4", True), ("number", "12", "12 or 13", False), ("number", "12", "none", False), ("number", "1", "1e999999999", False),
    ("exact", "Alice and Bob", r"\text{alice  and Bob}.", True), ("exact", "Alice", "Bob", False), ("contains", "Paris", "It is paris", True), ("contains", "Paris", "Rome", False),
    ("math", "x+1", "$x+1$", True), ("math", "x+1", "1+x", None)])
def test_answers_are_the_same(check, reference, answer, same):
  assert compare.same(check, reference, answer) is same


@pytest.mark.parametrize("answer, value", [
    ("1,200 m", 1200), ("-3/4", -0.75), (r"$\frac{1}{2}$", 0.5), ("x = 5", 5), (r"50\%", 50), ("$ 3.50", 3.5), ("12个", 12), (r"7\text{ cm}", 7), ("2e3", 2000), (".5", 0.5), ("3.", 3),
    ("x+1", None), ("2x", None), ("x^2", None), ("(1, 2)", None), ("1,2", None), ("3 or 4", None), ("1/0", None), ("", None), ("1e999999999", None)])
def test_a_number_is_the_whole_answer(answer, value):
  assert compare.number(answer) == value


def test_tolerance_is_relative():
  assert compare.same("number", "100", "101", 0.01) and not compare.same("number", "100", "101.1", 0.01)


@pytest.fixture(scope="module")
def check():
  pytest.importorskip("math_verify")
  found = verifier.Verifier(3.0)
  yield found
  found.close()


def test_mathematics_are_equal_in_other_forms(check):
  assert check.math(r"\frac{1}{2}", "0.5") and check.math("x^2-1", "(x-1)(x+1)") and not check.math("x^2-1", "x^2+1") and not check.math("3", "}{")


def test_a_check_that_hangs_is_killed_and_the_next_one_works(check):
  assert check.math("2", "1+1")
  process = check._process
  with pytest.raises(verifier.Hung):
    check.math("3", "3^{9999999999}")
  assert process.poll() is not None and check.math("2", "1+1") and check._process is not process


@pytest.mark.parametrize("module", ["math_verify", "reasoning_gym"])
def test_a_library_that_is_not_there_is_one_line(tmp_path, monkeypatch, module):
  (tmp_path / f"{module}.py").write_text("raise ImportError('not here')")
  monkeypatch.setenv("PYTHONPATH", str(tmp_path))
  found = verifier.Verifier(3.0)
  with pytest.raises(ValueError, match="pip install 'bluelm_jax.reasoning.'"):
    found.math("1", "2") if module == "math_verify" else found.gym({"task": "chain_sum"}, "1")
  found.close()


def test_the_verifier_sees_no_secret(check, monkeypatch):
  monkeypatch.setenv("SOME_KEY", "secret")
  check.close()
  assert check.math("2", "1+1")
  with open(f"/proc/{check._process.pid}/environ", "rb") as f:
    assert b"SOME_KEY" not in f.read()


@pytest.mark.parametrize("task, answer, fine", [
    ("countdown", "(3 + 4) * 2", True), ("countdown", "__import__('os').system('x')", False), ("puzzle24", "open(1)", False), ("simple_integration", "x**2 + sin(x) + C", True),
    ("spiral_matrix", "[1, 2]", True), ("spiral_matrix", "print(1)", False), ("chain_sum", "print(1)", True)])
def test_no_answer_is_evaluated_that_could_call(task, answer, fine):
  assert verifier.harmless(task, answer) is fine


# Questions.


def test_a_question_chooses_its_check():
  assert [question(**row).meta["question"]["check"] for row in (
      dict(answer="B"), dict(answer="12"), dict(answer=12), dict(answer="x+1"), dict(), dict(answer="A", options=["1", "2"]), dict(answer="Paris", check="exact"))] == [
          "choice", "number", "number", "math", "math", "choice", "exact"]
  found = question(answer="A", options=["one", "two"], level=5)
  assert found.messages[0]["content"] == "What is it?\nA. one\nB. two" and found.meta["question"]["answer"] == "A" and found.meta["language"] == "en"


@pytest.mark.parametrize("text, code", [
    ("交换12345的位置: S21;T43;U25; 结果?", "zh"), ("求 $\\int_0^1 x dx$", "zh"), ("Solve $x^2-5x+6=0$.", "en"), ("Find n.", "en"), ("What does the word 苹果 mean in English?", "en"),
    ("Quelle est la somme de 3 et 4 ?", "fr"), ("みかんが3個あります。2個食べると何個ですか", "ja")])
def test_formulas_do_not_hide_a_questions_language(text, code):
  assert question(question=text).meta["language"] == code


def test_a_question_shows_images():
  found = question(answer="2", image=PNG)
  assert [p["type"] for p in found.messages[0]["content"]] == ["image", "text"] and len(found.images) == 1


@pytest.mark.parametrize("row, reason", [
    (dict(check="right"), "check 'right'"), (dict(check="contains"), "no majority"), (dict(answer="many", check="number"), "check number"), (dict(question=None), "needs question"),
    (dict(options="ABC"), "give a list"), (dict(answer="1", image="no.png"), "no image at")])
def test_bad_questions_say_why(row, reason):
  with pytest.raises(ValueError, match=reason):
    question(**row)


def test_generated_questions_repeat_and_grow_with_seed_and_level():
  source = dict(kind="tasks", path="sw*,story", licence="MIT", levels=(1, 4), count=3)
  assert generated.names(source) == ["swap@1", "swap@4", "story@1", "story@4"]
  one, again, other = ([s.messages[0]["content"] for s in generated.samples({**source, "seed": seed}, "swap@4", 0, 3, "t")] for seed in (0, 0, 1))
  assert one == again and not set(one) & set(other) and all(text.count(";") == 4 for text in one)
  for change, reason in ((dict(path="swop"), "no task 'swop'"), (dict(levels=(9,)), "levels 1 to 6")):
    with pytest.raises(ValueError, match=reason):
      generated.names({**source, **change})


def test_reasoning_gym_scores_its_own(check):
  pytest.importorskip("reasoning_gym")
  source = dict(kind="reasoning_gym", path="chain_sum,propositional_logic", licence="Apache-2.0", levels=(0, 2), count=2)
  found = {name: list(generated.samples(source, name, 0, 2, "g")) for name in generated.names(source)}
  assert list(found) == ["chain_sum@0", "chain_sum@2", "propositional_logic@0", "propositional_logic@2"]
  for sample in found["chain_sum@2"]:
    q = json.loads(json.dumps(sample.meta["question"]))
    assert check.gym(q["task"], q["answer"]) and not check.gym(q["task"], q["answer"] + "1")
  with pytest.raises(ValueError, match="another question"):
    check.gym({**q["task"], "index": 0}, q["answer"])


# Rewriting.


@pytest.mark.parametrize("kind, text, rule", [
    ("paraphrase", "", "rewrite_missing"), ("paraphrase", "tom has 3 apples, and buys 4. how many?", "rewrite_same"), ("paraphrase", "Tom owns 3 apples and gets 4 others; how many then?", ""),
    ("paraphrase", "汤姆有3个苹果，又买了4个，一共多少个？", "rewrite_language"), ("translate", "汤姆有3个苹果，又买了4个，一共多少个？", ""), ("translate", "汤姆有三个苹果，又买了4个，一共多少个？", "rewrite_numbers"),
    ("translate", "Tom owns 3 apples and gets 4 others; how many then?", "rewrite_language"), ("numbers", "Tom has 5 apples and buys 9. How many?", "")])
def test_rules_of_rewriting(kind, text, rule):
  given = questions.sample({"question": "Tom has 3 apples and buys 4. How many?".replace(" and", ", and"), "answer": "7"}, "s#0", "MIT", ".", "number")
  assert rewrite.broken(given, kind, text) == rule


def test_a_rewriting_is_found_between_its_marks():
  assert rewrite.found("<think>hm <question>a</question></think> <question> How many? </question>") == "How many?"
  assert rewrite.found("How many?") == rewrite.found("<question>a</question><question>b</question>") == ""


def test_answers_in_words_are_not_translated():
  assert [k for k in rewrite._NEEDS if rewrite.able(question(answer="Paris", check="exact"), k)] == ["paraphrase"]
  assert sorted(k for k in rewrite._NEEDS if rewrite.able(question(answer="7"), k)) == ["numbers", "paraphrase", "reverse", "translate"]


# Votes and choices.


def same(a, b):
  return a == b


@pytest.mark.parametrize("answers, agreement, label, outcome", [
    ("aaab", 0.6, "a", ""), ("aabb", 0.4, "", "tie"), ("aabc", 0.6, "", "no_majority"), ("aabc", 0.5, "a", ""), (["a", "", "", ""], 0.2, "", "no_majority"),
    (["", ""], 0.5, "", "no_answers"), (["a", "a", "", ""], 0.6, "", "no_majority"), ("baaab", 0.6, "a", "")])
def test_a_majority_is_large_enough_or_there_is_no_label(answers, agreement, label, outcome):
  found = vote.majority(list(answers), same, agreement)
  assert (found[0], found[2]) == (label, outcome) and found[1] == [i for i, a in enumerate(answers) if a and a == label]


def test_equal_answers_in_other_forms_vote_together():
  assert vote.majority(["0.5", "1/2", "3"], lambda a, b: compare.same("number", a, b), 0.6)[:2] == ("0.5", [0, 1])


def test_near_copies_go_and_unlike_paths_stay():
  base = [f"word{i}" for i in range(60)]
  like, unlike = " ".join(base[:59] + ["last"]), " ".join(f"other{i}" for i in range(60))
  half = " ".join(base[:30] + [f"new{i}" for i in range(30)])
  texts = [" ".join(base), like, half, unlike, " ".join(base).upper()]
  kept, copies = choose.choose(texts, 2, 0.8, 0)
  assert len(set(copies) & {0, 1, 4}) == 2 and len(copies) == 2
  assert 3 in kept and len(kept) == 2  # of three that differ, the one unlike all others is among two
  assert choose.choose(texts, 9, 0.8, 0)[1] == copies and len(choose.choose(texts, 9, 0.8, 0)[0]) == 3
  assert choose.choose(["3+4=7", "4+3=7", "3+4=7;"], 9, 0.8, 0)[1] in ([0], [2])  # too short for 5-grams: equal ones alone are copies
  assert choose.choose([], 2, 0.8, 0) == ([], [])


# Judging.


def judged(given, texts, **more):
  """(kept, the one kind's counts) of a question and its replies."""
  config = defaults.dataset().to_dict()
  config["reasoning"].update({"thought_tokens": (1, 1000), "keep": 9, **more})
  config["reasoning"]["generator"]["model"] = "m"
  given.meta["domain"] = "general"
  kept, kinds, _ = judge.judge([given], [[{"text": t, "thought": "", "finish": "stop"} for t in texts]], config, decontaminate.tables(["the pen of my aunt lies on the old table of your uncle"]))
  return kept, next(iter(kinds.values()))


def thinks(*answers):
  return [f"<think>way {i} leads there</think>\\boxed{{{a}}}" for i, a in enumerate(answers)]


def test_a_rewriting_whose_majority_finds_another_answer_is_left_out():
  given = question(answer="7")
  assert judged(given, thinks(7, 8, 8, 8))[1]["outcomes"] == {"solved": 1}
  given.meta["question"]["rewriting"] = "paraphrase"
  kept, counts = judged(given, thinks(7, 8, 8, 8))
  assert not kept and counts["outcomes"] == {"rewrite_disagrees": 1} and counts["removed"] == {"rewrite_disagrees": 4}
  assert len(judged(given, thinks(7, 7, 7, 8))[0]) == 3
  assert judged(given, thinks(7, 7, 8, 9))[1]["outcomes"] == {"no_majority": 1}


def test_what_is_refused_unsolved_contaminated_or_unchecked_is_counted():
  assert judged(question(answer="7"), [])[1]["outcomes"] == {"refused": 1}
  assert judged(question(answer="7"), thinks(8, 9))[1]["outcomes"] == {"unsolved": 1}
  exam = "<think>The pen of my aunt lies on the old table of your uncle</think>\\boxed{7}"
  assert judged(question(answer="7"), [exam, *thinks(7)])[1]["removed"] == {"contaminated": 1}
  pytest.importorskip("math_verify")
  kept, counts = judged(question(answer="3", check="math"), thinks("3", "3^{9999999999}"), check_seconds=1.0)
  assert len(kept) == 1 and counts["removed"] == {"unchecked": 1} and counts["pass_rates"][5] == 1


def test_styles_part_at_the_thoughts_tokens():
  kept, counts = judged(question(answer="7"), ["<think>one two three four five six seven eight nine ten eleven</think>\\boxed{7}", *thinks(7)], long_tokens=14)
  assert [s.meta["style"] for s in kept] == ["long", "short"] and counts["long"] == counts["short"] == 1


def test_images_are_shown_to_the_generator_and_kept():
  given = question(answer="2", image=PNG)
  asked = prompts.solve(given)[0]["content"]
  assert asked[0] == {"type": "image_url", "image_url": {"url": PNG}} and "boxed" in asked[-1]["text"]
  kept, _ = judged(given, thinks(2))
  assert kept[0].messages[0]["content"][0] == {"type": "image"} and kept[0].images == given.images
