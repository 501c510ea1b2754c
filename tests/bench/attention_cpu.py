"""Attention on CPU: the blockwise backend against the dense one and torch's, forward and backward.

  python -m tests.bench.attention_cpu [rounds]     # prints a markdown table

Time: one process, the three in turn, medians. Memory: what one forward and backward pass adds at its peak, each
in a process of its own.
"""

import json
import pathlib
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch.nn import functional as F

from bluelm_jax.kernels.attention import api
from tests.bench import machine

HEADS, KV_HEADS, HEAD_DIM = 8, 2, 64
LENGTHS = (512, 1024, 2048, 4096, 8192)
SIDES = ("xla", "reference", "torch")


def rows(length: int, packed: bool) -> tuple[np.ndarray, np.ndarray]:
  """(positions, segment_ids) int32 [1, S]: one document, or documents of lognormal lengths around 512."""
  rng, lengths = np.random.default_rng(length), []
  while sum(lengths) < length:
    lengths.append(length if not packed else max(16, int(rng.lognormal(np.log(512), 0.8))))
  positions = np.concatenate([np.arange(n) for n in lengths])[None, :length]
  return positions.astype(np.int32), np.repeat(np.arange(1, len(lengths) + 1), lengths)[None, :length].astype(np.int32)


def side(name: str, length: int, packed: bool):
  """A function that runs one forward and backward pass and returns the sum of dq."""
  rng = np.random.default_rng(0)
  q, k, v, d_out = (rng.standard_normal((1, length, heads, HEAD_DIM)).astype(np.float32) for heads in (HEADS, KV_HEADS, KV_HEADS, HEADS))
  positions, segments = rows(length, packed)
  if name == "torch":
    tensors = [torch.from_numpy(x.transpose(0, 2, 1, 3).copy()).requires_grad_() for x in (q, k, v)]
    cotangent, mask = torch.from_numpy(d_out.transpose(0, 2, 1, 3).copy()), None
    if packed:
      ids, at = torch.from_numpy(segments), torch.from_numpy(positions)
      mask = ((ids[:, :, None] == ids[:, None]) & (at[:, :, None] >= at[:, None]))[:, None]

    def run():
      out = F.scaled_dot_product_attention(*tensors, attn_mask=mask, is_causal=mask is None, enable_gqa=True)
      return float(torch.autograd.grad(out, tensors, cotangent)[0].sum())

    return run

  def loss(q, k, v):
    out, _ = api.attention(
        q, k, v, q_positions=positions, k_positions=positions, q_segment_ids=segments, k_segment_ids=segments, implementation=name)
    return jnp.sum(out * d_out)

  step, arrays = jax.jit(jax.grad(loss, (0, 1, 2))), [jnp.array(x) for x in (q, k, v)]
  return lambda: float(step(*arrays)[0].sum())


def times(length: int, packed: bool, rounds: int) -> dict[str, float]:
  """Median seconds of each side, after they have been found to agree."""
  runs = {name: side(name, length, packed) for name in SIDES}
  first = {name: run() for name, run in runs.items()}
  assert max(first.values()) - min(first.values()) < 1e-2 * (1 + abs(first["torch"])), first
  found = {name: [] for name in SIDES}
  for i in range(rounds):
    for name in SIDES if i % 2 else reversed(SIDES):
      start = time.perf_counter()
      runs[name]()
      found[name].append(time.perf_counter() - start)
  return {name: float(np.median(values)) for name, values in found.items()}


def _status(field: str) -> int:
  """Bytes, from the kernel's account of this process."""
  line = next(line for line in pathlib.Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
  return int(line.split()[1]) * 1024


def peak(name: str, length: int, packed: bool) -> int:
  """Bytes that one pass adds at its peak, compiled beforehand."""
  side(name, 128, packed)()  # libraries load
  run = side(name, length, packed)
  if name != "torch":
    run()  # compiles
  pathlib.Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
  before = _status("VmRSS")
  run()
  return _status("VmHWM") - before


def main():
  if sys.argv[1:2] == ["peak"]:
    print(peak(sys.argv[2], int(sys.argv[3]), sys.argv[4] == "packed"))
    return
  rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 9
  torch.set_num_threads(machine.CORES)
  print(f"{machine.line()}, torch {torch.__version__}, float32, {HEADS} heads of {HEAD_DIM}, {KV_HEADS} KV heads; forward and backward, {rounds} rounds\n")
  print("| row | S | ours: xla, ms | ours: dense | torch SDPA | torch / xla | peak MiB: xla | dense | torch |\n|---|---|---|---|---|---|---|---|---|")
  for kind in ("one document", "packed"):
    for length in LENGTHS:
      seconds = times(length, kind == "packed", max(3, rounds * 2048 // max(length, 2048)))
      memory = {}
      for name in SIDES:
        command = [sys.executable, "-m", "tests.bench.attention_cpu", "peak", name, str(length), kind]
        memory[name] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout) / 2**20
      ms = [f"{1e3 * seconds[name]:,.1f}" for name in SIDES]
      print(f"| {kind} | {length} | {' | '.join(ms)} | {seconds['torch'] / seconds['xla']:.2f} | {' | '.join(f'{memory[n]:,.0f}' for n in SIDES)} |", flush=True)


if __name__ == "__main__":
  main()
