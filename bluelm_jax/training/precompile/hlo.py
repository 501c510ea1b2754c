"""Reads the collectives of a compiled TPU program out of its scheduled HLO text.

A count of opcodes misleads for a TPU program; each collective is classified by what it does:
  - `async-collective-start` ... fusions ... `async-collective-done`: a collective with steps inside the fusions of
    matrix products; the same collective stands in each of them and is counted once;
  - `call-start(...), async_execution_thread="sparsecore"` ... `call-done`: done by a SparseCore beside the TensorCore;
  - a fusion of an all-reduce and a dynamic-slice of its result: a reduce-scatter (each chip keeps its slice);
  - a plain all-reduce of a buffer that was a dynamic-update-slice into zeros: a gather without an emitter of its own;
    it stays "all-reduce" here, since it moves what one moves.
The text of a scheduled module is its order of execution, so what stands between a start and its done overlaps.
"""

import collections
import math
import re
from typing import NamedTuple

import numpy as np

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "collective-permute", "all-to-all", "ragged-all-to-all", "collective-broadcast")
_BITS = {"pred": 8, "bf16": 16, "f16": 16, "f32": 32, "f64": 64, "s4": 4, "u4": 4}
_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
_LINE = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*)$")
_ARRAY = re.compile(r"\b([a-z]+\d*[a-z0-9]*)\[([\d,]*)\]")
_CALLS = re.compile(r"(?:calls|to_apply|body|condition|called_computation|async_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_IOTA = r"\[([\d,]+)\](?:T\(([\d,]+)\))?"  # device ids: counted in a shape, then transposed
_MESH = re.compile(rf"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\({_IOTA}\))? \{{([^}}]*)\}}")
_COUNTED = re.compile(rf"replica_groups=\[([\d,]+)\]<={_IOTA}")
_LISTED = re.compile(r"replica_groups=\{\{([\d,]*)\}")
_PAIRS = re.compile(r"source_target_pairs=\{\{(.*?)\}\}")
_KERNELS = ("tpu_custom_call", "mosaic_gpu", "triton", "__cublas", "__cudnn")  # targets of custom calls


class Op(NamedTuple):
  name: str
  kind: str  # HLO opcode
  size: int  # bytes of the result on one chip (a tuple: its largest part)
  shape: str  # of the result, as text
  operands: tuple[str, ...]
  calls: tuple[str, ...]
  text: str
  inner: str = ""  # a constant's literal


class Collective(NamedTuple):
  """One collective as a chip executes it.

  Attributes:
    kind: of KINDS, by meaning: a fused all-reduce + slice is a reduce-scatter.
    form: "sync", "async" (start ... done), "fused" (its steps are inside the fusions of matrix products; start ... done),
      or "sparse-core" (start ... done, carried out by a SparseCore).
    size: bytes of the result on one chip: the whole of a gather or an all-reduce, the part of a reduce-scatter.
    overlap: matrix products, kernels and loops between start and done; 0 if sync.
    members: places along the mesh (on GPUs the device ids, which it follows there) of a group that takes part together;
      of a permute, those of the longest way. () if not stated.
    trips: how often a step runs it, as the loops around it turn.
  """

  kind: str
  form: str
  size: int
  shape: str
  overlap: int
  computation: str
  name: str
  members: tuple[int, ...]
  text: str
  trips: int = 1


def parse(text: str) -> dict[str, list[Op]]:
  """HLO text -> operations by computation, in order of execution; "ENTRY" names the entry too."""
  computations, current = {}, None
  for line in text.splitlines():
    head = _HEAD.match(line)
    if head:
      current = computations[head[2]] = []
      if head[1]:
        computations["ENTRY"] = current
      continue
    op = _LINE.match(line)
    if op and current is not None:
      current.append(_op(op[2], op[3]))
    elif line.startswith("}"):
      current = None
  return computations


def _op(name, rest):
  """One instruction: `shape opcode(operands), attributes`."""
  shape, rest = _shape(rest)
  kind, _, tail = rest.partition("(")
  inner, tail = _balanced("(" + tail)
  called = list(_CALLS.findall(tail))
  for group in _BRANCHES.findall(tail):
    called += [c.strip().lstrip("%") for c in group.split(",")]
  return Op(name, kind.strip(), _size(shape), _strip(shape), tuple(re.findall(r"%([\w.\-]+)", inner)), tuple(called), tail, inner if kind == "constant" else "")


def _shape(rest):
  if rest.startswith("("):
    inner, tail = _balanced(rest)
    return "(" + inner + ")", tail.lstrip()
  shape, _, tail = rest.partition(" ")
  return shape, tail


def _balanced(text):
  """Text that opens with a bracket -> (inside it, after it)."""
  depth = 0
  for i, char in enumerate(text):
    depth += (char == "(") - (char == ")")
    if not depth:
      return text[1:i], text[i + 1:]
  return text[1:], ""


def _strip(shape):
  """The shape without its layout."""
  return re.sub(r"\{[^}]*\}", "", shape)


def _size(shape):
  best = 0
  for dtype, dims in _ARRAY.findall(_strip(shape)):
    bits = _BITS.get(dtype) or int((re.findall(r"\d+", dtype) or ["0"])[0])
    count = 1
    for dim in dims.split(","):
      count *= int(dim or 1)
    best = max(best, count * bits // 8)
  return best


def _reach(computations, name, seen=None):
  """Every operation of a computation and those it calls."""
  seen = set() if seen is None else seen
  if name in seen:
    return
  seen.add(name)
  for op in computations.get(name, ()):
    yield op
    for called in op.calls:
      yield from _reach(computations, called, seen)


def _is_compute(computations, op):
  """A matrix product or a kernel, alone, in a fusion, or in a loop."""
  if op.kind in ("dot", "convolution") or op.kind == "custom-call" and any(name in op.text for name in _KERNELS):
    return True
  return op.kind in ("fusion", "while") and any(_is_compute(computations, o) for c in op.calls for o in computations.get(c, ()))


def collectives(text: str) -> list[Collective]:
  """The collectives of a compiled module, each once."""
  computations = parse(text)
  inside = {c for ops in computations.values() for op in ops if op.kind in ("fusion", "async-start", "call-start") for c in op.calls}
  out = []
  for name, ops in computations.items():
    if name != "ENTRY" and name not in inside:
      where = "ENTRY" if ops is computations.get("ENTRY") else name
      for i, op in enumerate(ops):
        out += _of(computations, ops, i, where)
  turns = _turns(computations)
  return [c._replace(trips=turns.get(c.computation, 1)) for c in out]


def _turns(computations):
  """How often a step runs each computation that loops and calls reach; loops of unknown length count once."""
  turns, todo = {}, [("ENTRY", 1)]
  while todo:
    name, times = todo.pop()
    turns[name] = turns.get(name, 0) + times
    for op in computations.get(name, ()):
      if op.kind in ("while", "conditional", "call"):
        inside = times * (_length(computations, op) if op.kind == "while" else 1)
        todo += [(called, inside) for called in op.calls]
  return turns


def _length(computations, loop):
  """Turns of a while: as the compiler noted them, or the only constant that its condition compares with."""
  noted = re.search(r'known_trip_count":\{"n":"(\d+)"', loop.text)
  if noted:
    return int(noted[1])
  condition = re.search(r"condition=%?([\w.\-]+)", loop.text)
  found = [re.search(r"\((\d+)\)", "(" + op.inner + ")") for op in computations.get(condition[1], ()) if op.kind == "constant"] if condition else []
  numbers = [int(m[1]) for m in found if m]
  return numbers[0] if len(numbers) == 1 else 1


def _of(computations, ops, i, where):
  """The collectives that operation i of a computation issues; the later steps and ends of an asynchronous one are not counted."""
  op = ops[i]
  if op.kind.removesuffix("-start") in KINDS:
    form = "async" if op.kind.endswith("-start") else "sync"
    moves, inner = [op], []
  elif op.kind in ("fusion", "async-start", "call-start", "call"):
    inner = [o for c in op.calls for o in _reach(computations, c)]
    moves = [o for o in inner if o.kind.removesuffix("-start") in KINDS]
    if op.kind == "call-start" or op.kind == "async-start":
      form = "sparse-core" if "sparsecore" in op.text else "async"
    elif op.name.startswith("async-collective-start"):
      form = "fused"
    elif op.kind == "fusion" and _is_step(op, ops, moves):
      return []
    else:
      form = "sync"
  else:
    return []
  out = []
  for o in moves:
    kind, size, shape = o.kind.removesuffix("-start"), _moved(o), o.shape
    if op.kind == "fusion" and kind == "all-reduce" and form == "sync" and any(p.kind == "dynamic-slice" for p in inner) and op.size < o.size:
      kind, size, shape = "reduce-scatter", op.size, op.shape
    overlap = 0 if form == "sync" else _between(computations, ops, i)
    out.append(Collective(kind, form, size, shape, overlap, where, op.name, _members(o.text), o.text))
  return out


def _moved(op):
  """Bytes of a collective's results; several tensors may travel as one, and a start returns its operands, too."""
  if not op.shape.startswith("("):
    return op.size
  parts = _parts(op.shape[1:-1])
  if op.kind.endswith("-start") and op.kind != "all-reduce-start":
    return sum(map(_size, _parts(parts[1].strip("()"))))
  return sum(map(_size, parts))


def _parts(text):
  """A tuple's text at its outermost commas."""
  parts, depth = [""], 0
  for char in text:
    depth += (char in "([{") - (char in ")]}")
    if char == "," and not depth:
      parts.append("")
    else:
      parts[-1] += char
  return [part.strip() for part in parts]


def _is_step(op, ops, moves):
  """Whether a fusion continues or ends an asynchronous collective (it takes the start's s32/u32 state)."""
  if not moves:
    return False
  if op.name.startswith("async-collective-done"):
    return True
  by_name = {o.name: o for o in ops}
  seen, todo = set(), list(op.operands)
  while todo:
    name = todo.pop()
    if name in seen or name not in by_name:
      continue
    seen.add(name)
    if name.startswith("async-collective-start"):
      return True
    if by_name[name].kind == "get-tuple-element":
      todo += by_name[name].operands
    elif by_name[name].kind == "fusion" and "u32[]" in by_name[name].shape:  # an earlier step
      return True
  return False


def _between(computations, ops, start):
  """Matrix products, kernels and loops from an asynchronous collective's start to its end."""
  count, names = 0, {ops[start].name}
  for op in ops[start + 1:]:
    mine = bool(names & set(op.operands))
    if mine and (op.kind.endswith("-done") or op.name.startswith("async-collective-done")):
      return count
    if mine and (op.kind in ("get-tuple-element", "tuple", "bitcast") or op.kind.endswith("-update") or op.kind == "fusion" and "u32[]" in op.shape):
      names.add(op.name)  # carries its state; a fusion is also a step of it
    count += _is_compute(computations, op)
  return count


def _members(text):
  """Device ids of a collective's first group; of a permute, the pair farthest apart."""
  numbers = lambda listed: [int(n) for n in listed.split(",")]
  if named := _MESH.search(text):
    sizes = dict(re.findall(r"'(\w+)'=(\d+)", named[1]))
    shape, names = [int(n) for n in sizes.values()], re.findall(r"'(\w+)'", named[4])
    ids = _counted(named[2] and numbers(named[2]), named[3] and numbers(named[3]), math.prod(shape)).reshape(shape)
    return tuple(ids[tuple(slice(None) if name in names else 0 for name in sizes)].ravel().tolist())
  if counted := _COUNTED.search(text):
    shape = numbers(counted[1])
    return tuple(_counted(numbers(counted[2]), counted[3] and numbers(counted[3]), math.prod(shape)).reshape(shape)[0].tolist())
  if listed := _LISTED.search(text):
    return tuple(numbers(listed[1])) if listed[1] else ()
  if pairs := _PAIRS.search(text):
    return tuple(max((numbers(pair) for pair in pairs[1].split("},{")), key=lambda pair: abs(pair[0] - pair[1])))
  return ()


def _counted(shape, order, count):
  ids = np.arange(count) if not shape else np.arange(count).reshape(shape)
  return ids.transpose(order) if order else ids


def table(found: list[Collective], floor: int = 0) -> str:
  """Collectives by computation, kind, form and size, one line each."""
  rows = collections.Counter()
  overlaps = collections.defaultdict(list)
  for c in found:
    if c.size >= floor:
      key = (c.computation, c.kind, c.form, c.shape, c.size, len(c.members))
      rows[key] += 1
      overlaps[key].append(c.overlap)
  lines = [f"{'computation':40} {'count':>5} {'kind':18} {'form':11} {'MiB':>9} {'group':>5} {'products':>8}  shape"]
  for key, count in sorted(rows.items(), key=lambda kv: (kv[0][0], kv[0][1], -kv[0][4])):
    where, kind, form, shape, size, group = key
    o = overlaps[key]
    lines.append(f"{where[:40]:40} {count:5} {kind:18} {form:11} {size / 2**20:9.3f} {group:5} {min(o)}-{max(o):<6}  {shape[:70]}")
  return "\n".join(lines)


def totals(found: list[Collective], floor: int = 2**16) -> dict[str, int]:
  """`kind/form` -> count, of results of at least `floor` bytes."""
  return dict(sorted(collections.Counter(f"{c.kind}/{c.form}" for c in found if c.size >= floor).items()))
