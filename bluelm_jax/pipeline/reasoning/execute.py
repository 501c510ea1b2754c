"""Programs that a model wrote, run against tests: `passes(code, tests, seconds)`.

A program runs in a process of its own (python -I), in an empty folder that is removed afterwards, with no variable of ours. Its memory,
CPU time, files, and processes are limited, what it prints goes to a file of limited size, and its process group is killed when it is
done or late. Where Linux lets us (user namespaces), it has no network; elsewhere the number of processes is not limited. Started by root
it is nobody, unless Python's library is for root alone or a container's root may be no one else.

This guards against accidents, not against attacks. A program may read and change whatever files its user may, one that leaves its
process group may live on until its CPU time is used up, and one that searches the interpreter it shares with asserts may find the word
that says they passed. Run what you do not trust at all in a container or a virtual machine. Needs a system with `resource` (no Windows).
"""

import ast
import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from typing import Any, Mapping

_MEMORY = 1 << 30
_FILE = 4 << 20  # bytes of a file, and hence of what is printed
_FILES = 64  # open
_PROCESSES = 32
_NOBODY = 65534
_NEW_USER, _NEW_NETWORK = 0x10000000, 0x40000000  # of unshare(2)


def tests(given: Any) -> str | dict[str, list[str]]:
  """Tests as `passes` takes them, out of what public data sets have: asserts, a list of them, or inputs and outputs, also as JSON.

  Raises:
    ValueError: they are of another form, or would pass whatever the program does.
  """
  if isinstance(given, str) and given.lstrip().startswith("{"):
    try:
      given = json.loads(given)
    except ValueError:
      pass
  if isinstance(given, Mapping):
    pairs = [given.get(key) for key in ("inputs", "outputs")]
    if set(given) != {"inputs", "outputs"} or not all(isinstance(p, (list, tuple)) and p and all(isinstance(t, str) for t in p) for p in pairs) or len(pairs[0]) != len(pairs[1]):
      raise ValueError('the tests of a question need {"inputs": [text, ...], "outputs": [text, ...]}, as many of both, and no other key')
    return {"inputs": list(pairs[0]), "outputs": list(pairs[1])}
  if isinstance(given, (list, tuple)) and all(isinstance(t, str) for t in given):
    given = "\n".join(given)
  if not isinstance(given, str):
    raise ValueError(f"the tests of a question are a {type(given).__name__}; give Python asserts, or inputs and outputs")
  try:
    body = ast.parse(given).body
  except (SyntaxError, ValueError, RecursionError) as e:
    raise ValueError(f"the tests of a question are no Python: {e}") from e
  defined = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Import, ast.ImportFrom)
  of_main = lambda top: isinstance(top, ast.If) and any(isinstance(part, ast.Name) and part.id == "__name__" for part in ast.walk(top.test))  # does not run
  if not any(isinstance(part, ast.Assert | ast.Call) for top in body if not isinstance(top, defined) and not of_main(top) for part in ast.walk(top)):
    raise ValueError("the tests of a question assert and call nothing; add asserts, or a call such as check(FUNCTION)")
  return given


def passes(code: str, tests: str | Mapping[str, list[str]], seconds: float) -> bool:
  """Whether a program passes all tests.

  Args:
    tests: a text of Python asserts, which run after the program in its own names (where __name__ is not "__main__"); or {"inputs",
      "outputs"}, for each of which the program runs on its own, must end without an error, and print the same lines but for blanks at the
      ends of lines and of the whole.
    seconds: of one run, after which it is killed and has failed.
  """
  if isinstance(tests, str):
    word = secrets.token_bytes(16)
    return _run(code, tests, "", word, seconds)[0] == word
  for given, wanted in zip(tests["inputs"], tests["outputs"], strict=True):
    _, ended, printed = _run(code, None, given, b"", seconds)
    if ended != 0 or _lines(printed.decode("utf-8", "replace")) != _lines(wanted):
      return False
  return True


def _lines(text: str) -> list[str]:
  return [line.rstrip() for line in text.rstrip().splitlines()]


def _run(code: str, tests: str | None, given: str, word: bytes, seconds: float) -> tuple[bytes, int | None, bytes]:
  """(what stands in the file for the word, the exit status or None where it was late, what it printed)."""
  temporary = tempfile.TemporaryFile
  with tempfile.TemporaryDirectory(prefix="answer-", ignore_cleanup_errors=True) as folder, temporary() as ask, temporary() as told, temporary() as into, temporary() as out:
    ask.write(json.dumps({"code": code, "tests": tests, "word": word.hex(), "seconds": seconds}).encode())
    into.write(given.encode("utf-8", "replace"))
    for file in (ask, into):
      file.seek(0)
    os.chmod(folder, 0o777)  # it may be nobody's program; the folder's name is known to none
    env = {"PATH": os.environ.get("PATH", os.defpath), "HOME": folder, "TMPDIR": folder, "LANG": "C.UTF-8", "PYTHONUTF8": "1", "OPENBLAS_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-I", "-B", "-X", "utf8", os.path.abspath(__file__), str(ask.fileno()), str(told.fileno())], stdin=into, stdout=out, stderr=subprocess.DEVNULL,
        cwd=folder, env=env, pass_fds=(ask.fileno(), told.fileno()), start_new_session=True)
    try:
      ended = process.wait(seconds)
    except subprocess.TimeoutExpired:
      ended = None
    finally:
      try:
        os.killpg(process.pid, signal.SIGKILL)  # also what it left behind
      except ProcessLookupError:
        pass
      process.wait()
    told.seek(0), out.seek(0)
    return (told.read(64) if ended is not None else b""), ended, out.read(_FILE)


def _confine(seconds: float) -> None:
  """Gives up what this process may do."""
  import contextlib
  import ctypes
  import resource

  if os.geteuid() == 0 and sys.platform == "linux":  # whom no number of processes would limit
    with contextlib.suppress(OSError):  # a container's root may be no one else
      os.setgroups([])
      os.setresgid(_NOBODY, _NOBODY, _NOBODY)
      os.setresuid(_NOBODY, 0, 0)
      if os.access(os.__file__, os.R_OK):  # to the real user, who needs Python's own library
        os.setresuid(_NOBODY, _NOBODY, _NOBODY)
  # Processes are then counted apart from those of the same user outside, which may be many.
  few = sys.platform == "linux" and ctypes.CDLL(None).unshare(_NEW_USER | _NEW_NETWORK) == 0
  cpu = int(seconds) + 1
  limits = {"CORE": 0, "AS": _MEMORY, "FSIZE": _FILE, "NOFILE": _FILES, "CPU": cpu, **({"NPROC": _PROCESSES} if few else {})}
  for name, most in limits.items():
    if hasattr(resource, f"RLIMIT_{name}"):
      kind = getattr(resource, f"RLIMIT_{name}")
      hard = resource.getrlimit(kind)[1]
      most = most if hard == resource.RLIM_INFINITY else min(most, hard)
      with contextlib.suppress(ValueError, OSError):  # macOS limits no memory
        resource.setrlimit(kind, (most, most))


def _serve(ask: int, told: int) -> None:
  """Runs what is asked; writes the word once the asserts have passed."""
  import types

  with os.fdopen(ask) as file:
    request = json.load(file)
  os.set_inheritable(told, False)
  run, say, word = exec, os.write, bytes.fromhex(request["word"])  # a program may change what these names mean
  tests = request["tests"] and compile(request["tests"], "tests.py", "exec")
  module = types.ModuleType("__main__" if tests is None else "answer")
  program = compile(request["code"], "answer.py", "exec")
  sys.argv = ["answer.py"]
  sys.modules[module.__name__] = module
  _confine(request.pop("seconds"))
  del request
  run(program, module.__dict__)
  if tests is not None:
    run(tests, module.__dict__)
    say(told, word)


if __name__ == "__main__":
  _serve(*map(int, sys.argv[1:]))
