"""One training item as it lies in an ArrayRecord shard."""

import dataclasses
from typing import Any, Iterable

import msgpack

PACKING = "packing.json"  # beside shards: shard -> rows of a fixed length, each the list of the records that share it


def group_name(group: str) -> str:
  """How shards call a group of the mixture: GROUP-train-*.array_record and GROUP-test-*."""
  return "".join(c if c.isalnum() or c in "-_." else "_" for c in group)


@dataclasses.dataclass(frozen=True)
class Sample:
  """A document (`text`) or a conversation (`messages`), with its images.

  Attributes:
    source: where it comes from, e.g. "debian-handbook zh-CN".
    licence: SPDX name of its licence.
    text: the document, empty for a conversation.
    messages: turns in the OpenAI form, {"role": ..., "content": ...}; a part {"type": "image"} shows the next image.
    images: encoded files (WebP, PNG, JPEG) in the order they are mentioned; in a text, at its "<image>" marks.
    meta: anything else; a screen keeps its "template", "language" and "elements" here, a preference "chosen" and "rejected".
  """

  source: str
  licence: str
  text: str = ""
  messages: tuple[dict[str, Any], ...] = ()
  images: tuple[bytes, ...] = ()
  meta: dict[str, Any] = dataclasses.field(default_factory=dict)


def encode(sample: Sample) -> bytes:
  return msgpack.packb(vars(sample))  # asdict would copy deeply, in ten times the time


def decode(record: bytes) -> Sample:
  """Raises ValueError when the bytes are not a Sample."""
  try:
    fields = msgpack.unpackb(record)
    fields["messages"] = tuple(fields["messages"])
    fields["images"] = tuple(fields["images"])
    found = Sample(**fields)
    if not isinstance(found.text, str) or not isinstance(found.meta, dict) or not all(isinstance(i, bytes) for i in found.images):
      raise ValueError("a field of another type")
    return found
  except (msgpack.exceptions.UnpackException, TypeError, KeyError, ValueError) as e:
    raise ValueError(f"not a Sample record ({e}); rebuild the shard with bluelm_jax.pipeline") from e


def write_shard(path: str, samples: Iterable[Sample]) -> int:
  """Writes an ArrayRecord shard and returns the number of records."""
  return write_records(path, map(encode, samples))


def write_records(path: str, records: Iterable[bytes]) -> int:
  """The same of encoded samples."""
  from array_record.python import array_record_module  # slow import, offline use only

  # group_size:1 keeps random access cheap: grain reads single records.
  writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")
  count = 0
  for record in records:
    writer.write(record)
    count += 1
  writer.close()
  return count
