"""What a compiled step will cost: memory as the compiler placed it, time as a roofline. Times are estimates.

Nothing was run. The step takes the longer of its arithmetic and its memory traffic, plus the transfers that nothing
hides: a transfer with work beside it counts as hidden, while all of these together are shorter than the arithmetic.
How near a chip comes to its peak is assumed, below and in `sharding.chips`.
"""

import dataclasses

import jax
import numpy as np

from bluelm_jax.sharding.chips import Chip
from bluelm_jax.training import flops as flops_lib
from bluelm_jax.training import teacher as teacher_lib
from bluelm_jax.training.precompile import hlo
from bluelm_jax.training.precompile.compile import Compiled

# Shares of the peak beside the chip's own of products: attention kernels at head size 128 inside the blocks they visit
# (FlashAttention-3 reports up to 0.75 forward and less backward, arXiv 2407.08608); the vision tower's, whose heads
# of 72 fill little more than half of a 128-wide unit; the memory; a collective, which rarely uses all links.
ATTENTION, VISION_ATTENTION, MEMORY, LINKS = 0.55, 0.25, 0.80, 0.50
HOST = 8  # GPUs that NVLink joins; beyond them, each sends over its own network port
_BLOCK = 1024  # keys; a causal row's kernel computes whole blocks, half of those on the diagonal in vain


@dataclasses.dataclass(frozen=True)
class Memory:
  """Bytes on one device. `params` holds a teacher's too; `temporary` is what the compiler adds at its peak: activations, gradients, gathered weights."""

  params: int
  optimizer: int
  batch: int
  temporary: int
  peak: int
  available: float

  @property
  def fits(self) -> bool:
    return self.peak <= self.available


@dataclasses.dataclass(frozen=True)
class Transfer:
  """A kind of collective: how often a step runs it, the bytes of one device's results, seconds (estimate)."""

  kind: str
  form: str
  count: int
  bytes: int
  overlapped: bool
  seconds: float


@dataclasses.dataclass(frozen=True)
class Estimate:
  memory: Memory
  params: int
  tokens: int
  tiles: int
  flops: flops_lib.Flops
  recomputed: flops_lib.Flops
  transfers: list[Transfer]
  arithmetic: float
  traffic: float
  exposed: float
  devices: int
  chip: Chip

  @property
  def step(self) -> float:
    """Seconds."""
    return max(self.arithmetic, self.traffic) + self.exposed

  @property
  def mfu(self) -> float:
    return self.flops.total / (self.step * self.devices * self.chip.flops)

  @property
  def binding(self) -> str:
    """The largest term that keeps the step from the chip's peak."""
    ideal = self.flops.total / (self.devices * self.chip.flops)
    again = self.recomputed.total / (self.devices * self.chip.flops)
    terms = {
        "transfers that nothing hides": self.exposed, "memory traffic": max(self.traffic - self.arithmetic, 0.0),
        "recomputation": again, "kernels below the chip's peak (assumed)": self.arithmetic - ideal - again}
    return max(terms, key=terms.get)


def estimate(compiled: Compiled, config, model_config, chip: Chip) -> Estimate:
  spec, devices = compiled.described.spec, compiled.described.mesh.size
  tiles = spec.groups * spec.tile_slots
  packed = flops_lib.packed([spec.length] * spec.rows, tiles)
  model, recomputed = flops_lib.train(model_config, config.trainable, packed, config.objective)
  teacher = teacher_lib.described(config, model_config)
  if teacher:
    model += flops_lib.forward(teacher, packed)
    recomputed += flops_lib.output(teacher, packed.tokens)
  if config.objective == "distill" or config.loss_chunks > 1:
    recomputed += flops_lib.output(model_config, packed.tokens)
  work = model + recomputed
  useful = spec.length / (spec.length + min(_BLOCK, spec.length))
  shares = dict(llm=chip.products, vision=chip.products, adapter=chip.products, attention=ATTENTION * useful, vision_attention=VISION_ATTENTION)
  arithmetic = work.scaled(**{name: 1 / share for name, share in shares.items()}).total / (devices * chip.flops)
  found = hlo.collectives(compiled.program.as_text())
  transfers = _transfers(found, chip)
  hidden = sum(t.seconds for t in transfers if t.overlapped)
  exposed = sum(t.seconds for t in transfers if not t.overlapped) + max(hidden - arithmetic, 0.0)
  params = {**compiled.described.state.trainable, **compiled.described.state.frozen}
  count = sum(int(np.prod(x.shape)) for x in params.values())
  taught = sum(int(np.prod(x.shape)) for x in jax.tree.leaves(compiled.described.teacher))
  # Read and written: weights gathered in bfloat16 for each pass, of which a teacher has one, and the optimizer's float32 state.
  kept = compiled.described.sums or compiled.described.state  # what adds up gradients leaves the moments alone
  state = sum(_local(x) for x in jax.tree.leaves(kept))
  traffic = (2 * state + 2 * 2 * (3 * count + taught)) / (chip.bandwidth * MEMORY)
  return Estimate(
      memory(compiled, chip), count, spec.rows * spec.length, tiles, model, recomputed, transfers, arithmetic, traffic, exposed,
      devices, chip)


def memory(compiled: Compiled, chip: Chip) -> Memory:
  found = compiled.program.memory_analysis()
  size = lambda tree: sum(_local(x) for x in jax.tree.leaves(tree))
  params = size(compiled.described.state.trainable) + size(compiled.described.state.frozen) + size(compiled.described.teacher)
  batch = size(compiled.described.batch)
  arguments = found.argument_size_in_bytes
  peak = max(found.peak_memory_in_bytes, arguments)
  if compiled.update:
    beside = batch + size(compiled.described.teacher)  # lie there meanwhile
    peak = max(peak, compiled.update.memory_analysis().peak_memory_in_bytes + beside)
  gradients = size(compiled.described.sums)  # of the batches before, where a stage adds up
  return Memory(params, size(compiled.described.state.opt_state), batch, peak - arguments + gradients, peak, chip.memory)


def _local(x) -> int:
  """Bytes of one device's part."""
  return int(np.prod(x.sharding.shard_shape(x.shape))) * x.dtype.itemsize


def _transfers(found: list[hlo.Collective], chip: Chip) -> list[Transfer]:
  """Collectives of a kind together, the largest first."""
  groups = {}
  for c in found:
    groups.setdefault((c.kind, c.form, c.overlap > 0), []).append(c)
  made = [
      Transfer(kind, form, sum(c.trips for c in cs), sum(c.size * c.trips for c in cs), overlapped, sum(_seconds(c, chip) * c.trips for c in cs))
      for (kind, form, overlapped), cs in groups.items()]
  return sorted(made, key=lambda t: -t.seconds)


def _seconds(c: hlo.Collective, chip: Chip) -> float:
  """Of one collective: what a device sends inside its host, or what a host's members of the group send out of it, if longer."""
  members, hosts = max(len(c.members), 2), 1
  if chip.network:
    hosts = max(len({device // HOST for device in c.members}), 1)
  whole = c.size * members if c.kind == "reduce-scatter" else c.size
  times = 2 if c.kind == "all-reduce" else 1
  if c.kind == "collective-permute":
    return c.size / (LINKS * (chip.network if hosts > 1 else chip.link))
  inside = whole * (members - 1) / members / chip.link
  beyond = whole * (hosts - 1) / hosts / (chip.network * members / hosts) if hosts > 1 else 0.0
  return times * max(inside, beyond) / LINKS
