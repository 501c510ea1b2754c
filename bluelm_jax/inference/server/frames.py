"""How pieces of a streamed answer are set apart."""

import json


def dumps(found) -> bytes:
  return json.dumps(found, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()


def event(found) -> bytes:
  """A server-sent event; a string goes as it is."""
  return b"data: " + (found.encode() if isinstance(found, str) else dumps(found)) + b"\n\n"


def line(found) -> bytes:
  """A line of NDJSON."""
  return dumps(found) + b"\n"
