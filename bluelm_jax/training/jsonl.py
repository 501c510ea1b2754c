"""Files of one JSON object a line, which several processes share and any may leave unfinished: the first of them writes."""

import json
import pathlib

import jax


def append(path, line: dict) -> None:
  if jax.process_index() == 0:
    with open(path, "a") as f:
      f.write(json.dumps(line) + "\n")


def keep(path, step: int | None = None) -> None:
  """Drops a last line that was cut, and lines of later steps than `step`, which will be other steps."""
  path = pathlib.Path(path)
  if jax.process_index() or not path.exists():
    return
  lines = path.read_text().splitlines(keepends=True)
  kept = [line for line in lines if line.endswith("\n") and (step is None or json.loads(line)["step"] <= step)]
  if kept != lines:
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(kept))
    temporary.rename(path)
