"""What every `python -m bluelm_jax.<door>` shares."""

import sys
from typing import Callable, Sequence

from absl import app
from absl import flags
from absl import logging


def run(main: Callable[[Sequence[str]], None], required: Sequence[str] = ()) -> None:
  """Runs `main` with absl flags; a user's mistake becomes one line on stderr and exit code 2."""
  flags.mark_flags_as_required(required)

  def guarded(argv):
    logging.set_verbosity(logging.ERROR)  # orbax warns at every restore of a part
    if len(argv) > 1:
      raise ValueError(f"unexpected argument {argv[1]!r}; options start with --")
    main(argv)

  def entry(argv):
    try:
      guarded(argv)
    except (ValueError, OSError) as e:
      _leave(e)

  try:
    app.run(entry, flags_parser=_parse)
  except KeyboardInterrupt:
    sys.exit(130)


def _parse(argv):
  try:
    return flags.FLAGS(argv)
  except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as e:
    _leave(e)


def _leave(error: Exception):
  text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)  # str() of a KeyError is a repr
  print(f"error: {' '.join(text.split())}", file=sys.stderr)
  sys.exit(2)
