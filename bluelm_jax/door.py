"""What every `python -m bluelm_jax.<door>` shares."""

import sys
from typing import Callable, Sequence

from absl import app
from absl import flags
from absl import logging

from bluelm_jax import process


def run(main: Callable[[Sequence[str]], None], required: Sequence[str] = ()) -> None:
  """Runs `main` with absl flags; a user's mistake becomes one line on stderr and exit code 2."""
  flags.mark_flags_as_required(required)

  def guarded(argv):
    logging.set_verbosity(logging.WARNING)
    process.keep_memory()
    if len(argv) > 1:
      raise ValueError(f"unexpected argument {argv[1]!r}; options start with --")
    main(argv)

  def entry(argv):
    try:
      guarded(argv)
    except (ValueError, FileNotFoundError) as e:
      print(f"error: {' '.join(str(e).split())}", file=sys.stderr)
      sys.exit(2)

  try:
    app.run(entry, flags_parser=_parse)
  except KeyboardInterrupt:
    sys.exit(130)


def _parse(argv):
  try:
    return flags.FLAGS(argv)
  except (flags.Error, AttributeError, KeyError, TypeError, ValueError, FileNotFoundError) as e:
    print(f"error: {' '.join(str(e).split())}", file=sys.stderr)
    sys.exit(2)
