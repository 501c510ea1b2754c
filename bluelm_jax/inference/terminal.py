"""Answers on a terminal: one, many from a file, or a chat."""

import dataclasses
import json
import pathlib
import sys
from typing import Iterable, Iterator

import cv2
import numpy as np

from bluelm_jax.data import images
from bluelm_jax.data.tasks import screens
from bluelm_jax.inference.conversation import Speaker
from bluelm_jax.inference.conversation import user_turn
from bluelm_jax.inference.request import Options
from bluelm_jax.inference.text import Piece

HELP = """/image PATH   show an image with what you say next
/think N      think within N tokens; /think on: as long as there is room; /think off: answer at once
/draw PATH    draw the last answer's point or box on the last image
/new          forget this conversation
/quit         leave"""
_RED = (229, 57, 53)


def shown(pieces: Iterable[Piece], dim: bool) -> Iterator[str]:
  """A thought comes first, dimmed where asked, and a blank line before the answer."""
  before, after = ("\x1b[2m", "\x1b[0m") if dim else ("", "")
  thinking = False
  for piece in pieces:
    yield f"{before}{piece.text}{after}" if piece.phase == "think" else "\n\n" * thinking + piece.text
    thinking = piece.phase == "think"


def many(speaker: Speaker, path: pathlib.Path, options: Options) -> Iterator[str]:
  """A line of JSON for each line of a JSONL file, in its order.

  A line has "prompt", and may have "images" (paths, from the file's folder) and any field of `Options`. The answer's line is the
  same with "thought", "answer" and "finish".

  Raises:
    ValueError: a line that cannot be answered, by its number; then none is.
  """
  asked, records = [], []
  for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
    try:
      records.append(record := json.loads(line))
      if not isinstance(record, dict) or not isinstance(record.get("prompt"), str):
        raise ValueError('it needs a "prompt"')
      own = {k: tuple(v) if isinstance(v, list) else v for k, v in record.items() if k not in ("prompt", "images")}
      if own.get("n", 1) != 1:
        raise ValueError('"n" must be 1; repeat the line with another seed')
      asked.append(([user_turn(record["prompt"], [str(path.parent / p) for p in record.get("images", ())])], dataclasses.replace(options, **own)))
    except (ValueError, TypeError, OSError) as e:
      raise ValueError(f"{path}, line {number}: {' '.join(str(e).split())}") from e
  for record, answer in zip(records, speaker.answers(asked)):
    yield json.dumps({**record, **answer}, ensure_ascii=False)


def chat(speaker: Speaker, options: Options, lines: Iterable[str], dim: bool, image_paths=()) -> Iterator[str]:
  """What a chat says to the lines that are typed, until they end or one is /quit; wrong ones are told so."""
  messages, waiting, answer = [], list(image_paths), ""
  last_image = waiting[-1] if waiting else None
  for line in lines:
    command, _, rest = line.strip().partition(" ")
    try:
      if command == "/quit":
        return
      elif command == "/new":
        messages, waiting, answer = [], [], ""
      elif command == "/image":
        images.read(rest)
        waiting.append(rest)
        last_image = rest
      elif command == "/think":
        options = thinking(options, rest)
      elif command == "/draw":
        yield f"{draw(last_image, answer, rest)}\n"
      elif command.startswith("/"):
        yield f"{HELP}\n"
      elif command:
        turn, answer = user_turn(line.strip(), waiting), ""
        for text in shown(noted(speaker.answer([*messages, turn], options), said := []), dim):
          yield text
        yield "\n"
        answer, waiting = "".join(said), []
        messages += [turn, {"role": "assistant", "content": answer}]
    except (ValueError, OSError) as e:
      yield f"error: {e}\n"


def thinking(options: Options, said: str) -> Options:
  """The options with /think's argument."""
  if said not in ("on", "off") and not said.isdecimal():
    raise ValueError(f"/think {said}: use on, off or a number of tokens")
  return dataclasses.replace(options, thinking=said != "off", thinking_token_budget=int(said) if said.isdecimal() else None)


def draw(image_path: str | None, answer: str, output: str) -> str:
  """Draws what an answer points at, "(x,y)" or "(left,top)(right,bottom)" in thousandths; says what it did.

  Raises:
    ValueError: no image, no point, or a path whose ending is no image format.
  """
  if image_path is None:
    raise ValueError("there is no image to draw on; show one first")
  places = screens.parse_places(answer)
  if not places:
    raise ValueError(f"the answer points nowhere: {answer[:60]!r}")
  picture = np.ascontiguousarray(images.read(image_path))
  h, w = picture.shape[:2]
  corners = [(round(x * (w - 1)), round(y * (h - 1))) for x, y in places]
  size = max(2, min(h, w) // 150)
  if len(corners) == 2:
    cv2.rectangle(picture, *corners, _RED, size)
  else:
    cv2.circle(picture, corners[0], 4 * size, _RED, size)
  try:
    written = cv2.imwrite(output, cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
  except cv2.error:
    written = False
  if not written:
    raise ValueError(f"cannot write {output!r}; give a path in a folder that exists and that ends in .png")
  return f"{'box' if len(corners) == 2 else 'point'} drawn in {output}"


def typed() -> Iterator[str]:
  """Lines of the standard input, asked for where it is a terminal."""
  if sys.stdin.isatty():
    print(HELP, file=sys.stderr)
  while True:
    try:
      yield input("> " if sys.stdin.isatty() else "")
    except EOFError:
      return


def noted(pieces: Iterable[Piece], answer: list[str]) -> Iterator[Piece]:
  """The pieces; those of the answer are kept too."""
  for piece in pieces:
    if piece.phase == "answer":
      answer.append(piece.text)
    yield piece
