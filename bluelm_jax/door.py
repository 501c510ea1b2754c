"""What every `python -m bluelm_jax.<door>` shares."""

import re
import sys
import traceback
from typing import Callable, Sequence

from absl import app
from absl import flags
from absl import logging

from bluelm_jax import process
from bluelm_jax import supervise


def run(main: Callable[[Sequence[str]], None], required: Sequence[str] = (), rest: bool = False) -> None:
  """Runs `main` with absl flags; a user's mistake becomes one line on stderr and exit code 2, leaving on request one and 75.

  Args:
    rest: whether what follows a lone "--" is for `main`, as options of a library.
  """
  flags.mark_flags_as_required(required)
  process.pass_over_absent_tpu()

  def guarded(argv):
    if len(argv) > 1 and not (rest and argv[1].startswith("--")):
      raise ValueError(f"unexpected argument {argv[1]!r}; options start with --")
    for name in required:
      if flags.FLAGS[name].value == "":
        raise ValueError(f"--{name} is empty; give it a value")
    main(argv)

  def entry(argv):
    try:
      guarded(argv)
    except (ValueError, OSError) as e:
      _leave(_reason(e))
    except supervise.Preempted as e:
      print(f"stopped: {e}", file=sys.stderr)
      sys.exit(supervise.GO_ON_LATER)

  try:
    app.run(entry, flags_parser=_parse)
  except KeyboardInterrupt:
    sys.exit(130)


def _parse(argv):
  logging.set_verbosity(logging.ERROR)  # config_flags warns before it raises, orbax at every restore of a part
  try:
    return flags.FLAGS(argv)
  except Exception as e:  # a config file is a program of its writer's, and may raise anything
    _leave(_reason(e))


def _reason(error: Exception) -> str:
  """What a user did wrong: in a value, in the flags, or in a config file."""
  while "Error whilst parsing config file" in str(error):  # config_flags puts a whole traceback into its message
    error = error.__context__
  unread = "Configuration is not available" in str(error)  # raised where the config is first looked at
  if unread:
    error = error.__cause__
  inner = error
  while inner.__context__:
    inner = inner.__context__
  text, where = _text(error), _place(error)
  if isinstance(error, SyntaxError):
    return f"{error.filename or 'the config file'}, line {error.lineno}: {error.msg}; give a Python config file"
  if isinstance(error, (AttributeError, KeyError)) and isinstance(inner, KeyError) and (inner is not error or "does not exist and cannot" in text):
    key = re.sub(r'^Key "(.*?)" does not exist.*', r"\1", _text(inner), flags=re.DOTALL)
    near = re.search(r'Did you mean "(.*?)"', text)
    return f"{where}there is no key {key!r} in the config; " + (f"did you mean {near[1]!r}?" if near else "see bluelm_jax/training/defaults.py, for a data set pipeline/defaults.py")
  if "has no attribute 'get_config'" in text:
    return "the file of --config has no get_config(); give one like configs/stages/text.py"
  if "get_config() takes" in text or "get_config() missing" in text:
    return f"{text}; mend what follows the colon of --config"
  if unread and not where:
    path = re.findall(r"'(.*?)'", str(error))
    return f"no config file at {path[-1]}; check --config" if path else "--config is empty; give it a value"
  return text if isinstance(error, (ValueError, flags.Error)) or not where else f"{where}{type(error).__name__}: {text}"


def _place(error: Exception) -> str:
  """The line of a config file that raised the error, or ""."""
  frames = [f for f in traceback.extract_tb(error.__traceback__) if f.name in ("get_config", "<module>")]
  return f"{frames[-1].filename}, line {frames[-1].lineno}: " if frames else ""


def _text(error: Exception) -> str:
  if isinstance(error, OSError) and error.filename:
    return f"{error.filename}: {error.strerror}; check the path"
  return str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)  # str() of a KeyError is a repr


def _leave(text: str):
  print(f"error: {' '.join(text.split())}", file=sys.stderr)
  sys.exit(2)
