"""Programs as answers: which pass their tests, and what a program cannot do to pass or to stay."""

import os
import subprocess
import sys
import time

import pytest

pytest.importorskip("rensa")

from bluelm_jax.pipeline import decontaminate
from bluelm_jax.pipeline import defaults
from bluelm_jax.pipeline.reasoning import execute
from bluelm_jax.pipeline.reasoning import judge
from bluelm_jax.pipeline.reasoning import prompts
from bluelm_jax.pipeline.reasoning import questions
from bluelm_jax.pipeline.reasoning import replies
from bluelm_jax.pipeline.reasoning import rewrite

ADD = "def add(a, b):\n  return a + b\n"
ASSERTS = "assert add(1, 2) == 3\nassert add(-1, 1) == 0"
PAIRS = {"inputs": ["1 2\n", "5 -7\n"], "outputs": ["3\n", "-2"]}
SUM = "print(sum(map(int, input().split())))"


def passes(code, tests=ASSERTS, seconds=10.0):
  return execute.passes(code, tests, seconds)


@pytest.mark.parametrize("code", [ADD, "if __name__ == '__main__':\n  raise SystemExit\n" + ADD, ADD + "import pickle\npickle.dumps(add)"])
def test_a_right_program_passes(code):
  assert passes(code)


@pytest.mark.parametrize("code", [
    ADD.replace("+", "-"), ADD[:-2] + "(", "", "def add(a, b):\n  if a < 0:\n    raise KeyError\n  return a + b", "print('all passed')", "import sys; sys.exit(0)", "import os; os._exit(0)",
    "import os\ndef add(a, b): os._exit(0)", "import sys\ndef add(a, b): sys.exit(0)", "import builtins\nbuiltins.exec = builtins.compile = lambda *_: None",
    "import os\nfor fd in range(64):\n  try: os.write(fd, b'passed')\n  except OSError: pass\nos._exit(0)", "import atexit, os\natexit.register(os._exit, 0)"])
def test_a_wrong_program_and_one_that_leaves_early_fail(code):
  assert not passes(code)


@pytest.mark.parametrize("code, right", [
    (SUM, True), (SUM + "\nimport sys; sys.exit(0)", True), (SUM[:-1] + ", end='  \\n\\n')", True), ("if __name__ == '__main__':\n  " + SUM, True), ("print(3)", False),
    (SUM + "\nprint()\nprint(1)", False), (SUM + "\nraise KeyError", False), ("print(sum(map(int, input().split())), end='x')", False), ("pass", False)])
def test_what_a_program_prints_is_compared(code, right):
  assert passes(code, PAIRS) is right


@pytest.mark.parametrize("code", ["while True: pass", "import time; time.sleep(60)"])
def test_an_endless_program_is_killed(code):
  start = time.monotonic()
  assert not passes(code, seconds=0.5) and time.monotonic() - start < 5


def test_memory_and_output_are_limited():
  assert not passes("x = bytearray(5 << 28)\n" + ADD) and passes("x = bytearray(1 << 20)\n" + ADD)
  loud = "while True: print('x' * 10**6)"
  start = time.monotonic()
  assert not passes(loud, PAIRS, 20.0) and time.monotonic() - start < 15  # its file is full before its time is up
  _, ended, printed = execute._run(loud, None, "", b"", 20.0)
  assert ended and len(printed) <= execute._FILE


@pytest.fixture(scope="module")
def namespaces():
  """Skips where Linux lets nobody make user namespaces."""
  ask = "import ctypes; raise SystemExit(ctypes.CDLL(None).unshare(0x10000000 | 0x40000000) != 0)"
  if sys.platform != "linux" or subprocess.run([sys.executable, "-c", ask]).returncode:
    pytest.skip("no user namespaces here")


def test_processes_are_limited(namespaces):
  """A small bomb: it makes twice the processes that it may, if it may, and they sleep."""
  bomb = f"import os, time\nfor _ in range({2 * execute._PROCESSES}):\n  if os.fork() == 0:\n    time.sleep(2); os._exit(0)\n" + ADD
  assert not passes(bomb) and passes(bomb.replace(f"range({2 * execute._PROCESSES})", "range(2)"))


def test_open_files_are_limited():
  assert not passes("files = [open('/dev/null') for _ in range(70)]\n" + ADD)


def test_what_a_program_leaves_behind_is_killed():
  _, ended, printed = execute._run("import os, time\nif not (child := os.fork()):\n  time.sleep(60)\nprint(child)", None, "", b"", 10.0)
  assert ended == 0
  end = time.monotonic() + 5
  while _alive(int(printed)) and time.monotonic() < end:
    time.sleep(0.01)
  assert not _alive(int(printed))


def _alive(process):
  try:
    with open(f"/proc/{process}/stat") as f:
      return f.read().rpartition(")")[2].split()[0] != "Z"
  except FileNotFoundError:
    return False


def test_a_program_sees_no_variable_of_ours_and_stands_in_an_empty_folder(monkeypatch):
  monkeypatch.setenv("SOME_KEY", "secret")
  look = "import os\nprint(sorted(os.environ), os.listdir())"
  _, ended, printed = execute._run(look, None, "", b"", 10.0)
  assert ended == 0 and b"SOME_KEY" not in printed and b"PYTHONPATH" not in printed and printed.rstrip().endswith(b"[]")
  _, _, printed = execute._run("import os; open('left', 'w').close(); print(os.getcwd())", None, "", b"", 10.0)
  assert printed.startswith(b"/") and not os.path.exists(printed.decode().strip())


def test_a_program_has_no_network(namespaces):
  _, ended, printed = execute._run("import os; print(os.readlink('/proc/self/ns/net'))", None, "", b"", 10.0)
  assert ended == 0 and printed.decode().strip() != os.readlink("/proc/self/ns/net")
  reach = "import socket\ns = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\ns.connect(('192.0.2.1', 9))\n" + ADD  # sends nothing
  assert not passes(reach) and passes("import socket\nsocket.socket()\n" + ADD)


# Replies and questions.


@pytest.mark.parametrize("text, code", [
    ("好的，下面是程序：\n```python\nx = 1\n```\n它把 x 设为一。", "x = 1"), ("```python\na\n```\nbetter:\n```py\nb\n```\nIt prints\n```text\nc\n```", "b"), ("```\na\n```", "a"),
    ("  ```Python\n  if a:\n    b\n  ```", "if a:\n  b"), ("no program", ""), ("```python\na", ""), ("`x`", ""), ("```js\na\n```", ""), ("```python\r\na\r\n```\r\nThat is all.", "a\r")])
def test_the_answer_is_the_last_block_of_python(text, code):
  assert replies.path({"text": text, "thought": "t", "finish": "stop"}, "code").answer == code


def question(text="Write add(a, b).", **row):
  return questions.sample({"question": text, **row}, "s#0", "MIT", ".")


def test_a_question_brings_tests():
  for tests, kept in ((ASSERTS, ASSERTS), (ASSERTS.split("\n"), ASSERTS), (PAIRS, PAIRS), ('{"inputs": ["1"], "outputs": ["2"]}', {"inputs": ["1"], "outputs": ["2"]})):
    q = question(tests=tests, seconds=2).meta["question"]
    assert (q["check"], q["kind"], q["answer"], q["tests"], q["seconds"]) == ("code", "code", "", kept, 2.0)
  assert not any(rewrite.able(question(tests=ASSERTS), kind) for kind in defaults.REWRITINGS)
  assert "```python" in prompts.asked(question(tests=ASSERTS))["content"] and "standard input" in prompts.asked(question(tests=PAIRS))["content"]
  assert "标准输入" in prompts.asked(question("请编写程序，读入两个整数，输出它们的和。", tests=PAIRS))["content"]


def test_a_question_keeps_the_indentation_of_its_program():
  text = "补全这个函数：\n\n\n\ndef add(a, b):\n  if a:\n    return a  # 然后？"
  assert questions.sample({"question": text, "tests": ASSERTS}, "", "", "").messages[0]["content"] == text


@pytest.mark.parametrize("row, reason", [
    (dict(check="code"), "no majority"), (dict(tests=ASSERTS, check="number", answer="1"), "tests, which are for check code"), (dict(tests="assert ("), "no Python"), (dict(tests=""), "assert and call nothing"),
    (dict(tests="def check(f):\n  assert f(1)"), "assert and call nothing"), (dict(tests="def check(f):\n  assert f(1)\nif __name__ == '__main__':\n  check(add)"), "assert and call nothing"), (dict(tests={"inputs": ["1"], "outputs": []}), "as many"), (dict(tests={"inputs": ["1"], "outputs": ["1", "2"]}), "as many"), (dict(tests={**PAIRS, "fn_name": "f"}), "no other key"),
    (dict(tests=3), "are a int"), (dict(tests=ASSERTS, seconds=0), "seconds 0")])
def test_tests_that_cannot_be_are_refused(row, reason):
  with pytest.raises(ValueError, match=reason):
    question(**row)


def test_programs_that_pass_are_kept_and_counted_as_code():
  c = defaults.dataset().to_dict()
  c["reasoning"].update(thought_tokens=(1, 1000), check_seconds=10.0, keep=4, samples=4)
  asked = question("请编写函数 add(a, b)，返回两数之和。", tests=ASSERTS)
  asked.meta["domain"] = "code"
  wordy = "def add(first_number_given, second_number_given):\n  total_of_both_numbers = first_number_given + second_number_given\n  return total_of_both_numbers\n"
  wordy += "".join(f"# {a}{b} plus {b}{a}\n" for a in ("one", "two", "four", "five", "nine") for b in ("apple", "pear", "plum", "peach", "grape", "melon"))  # more words than the prose has
  wordy += "# " + "-" * 40 + "\n"  # no loop
  texts = [f"程序如下，它把两个数相加。\n```python\n{p}```" for p in (ADD, ADD.replace("+", "*"), wordy)] + ["没有程序，答案是 \\boxed{7}。"]
  given = [{"text": t, "thought": f"先把两个数加起来，再返回结果，第{i}种写法是这样的。", "finish": "stop"} for i, t in enumerate(texts)]
  kept, kinds, removed = judge.judge([asked], [given], c, decontaminate.tables([]))
  assert [s.messages[1]["content"] for s in kept] == [texts[0], texts[2]] and kept[0].meta["checker"] == "code" and kept[0].meta["pass_rate"] == 0.5
  assert list(kinds) == ["code"] and kinds["code"]["removed"] == {"wrong": 1, "answer_missing": 1} and kinds["code"]["outcomes"] == {"solved": 1} and set(removed) == {"wrong", "answer_missing"}
