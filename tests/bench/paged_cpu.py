"""Decoding's attention on CPU: ours over pages in no order, against torch's over the same keys, each row's in one piece.

  python -m tests.bench.paged_cpu [rounds]     # prints a markdown table

One process, both in turn, medians of wall time. Ragged rows are of 1/8 to all of the longest's keys, which torch masks.
"""

import itertools
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch.nn import functional as F

from bluelm_jax.kernels.paged import api
from tests.bench import machine

GROUP, PAGE = 4, 16


def sides(rows: int, length: int, kv_heads: int, size: int, ragged: bool):
  """name -> a call that gives [R, 1, H, D]."""
  rng, table = np.random.default_rng(length), length // PAGE
  q = rng.standard_normal((rows, 1, kv_heads * GROUP, size), np.float32)
  k, v = (rng.standard_normal((rows * table, kv_heads, PAGE, size), np.float32) for _ in range(2))
  tables = rng.permutation(rows * table).reshape(rows, table)
  last = rng.integers(length // 8, length, (rows, 1)) if ragged else np.full((rows, 1), length - 1)
  whole = lambda x: torch.from_numpy(x[tables].swapaxes(1, 2).reshape(rows, kv_heads, length, size))  # [R, K, S, D]
  arrays = torch.from_numpy(q.swapaxes(1, 2).copy()), whole(k), whole(v)
  mask = torch.from_numpy(np.arange(length) <= last)[:, None, None] if ragged else None
  ours, args = jax.jit(api.attention), [jnp.asarray(x) for x in (q, k, v, tables.astype(np.int32), last.astype(np.int32))]
  return {
      "ours": lambda: ours(*args).block_until_ready(),
      "torch": lambda: F.scaled_dot_product_attention(*arrays, attn_mask=mask, enable_gqa=True).transpose(1, 2)}


def main():
  rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 15
  torch.set_num_threads(machine.CORES)
  print(f"{machine.line()}, torch {torch.__version__}, float32, pages of {PAGE}, {GROUP} query heads a key head; {rounds} rounds\n")
  print("| rows | keys of a row | KV heads x size | ours, ms | torch SDPA on whole rows, ms | torch / ours |\n|---|---|---|---|---|---|")
  cases = itertools.product((1, 8, 32), (256, 1024, 4096), ((2, 64), (4, 128), (8, 64)), (False,))
  for rows, length, (kv_heads, size), ragged in (*cases, (8, 1024, (4, 128), True), (32, 1024, (4, 128), True)):
    runs = sides(rows, length, kv_heads, size, ragged)
    np.testing.assert_allclose(runs["ours"](), runs["torch"](), rtol=1e-3, atol=1e-4)
    times = {name: [] for name in runs}
    for i in range(rounds):
      for name in runs if i % 2 else reversed(runs):
        start = time.perf_counter()
        runs[name]()
        times[name].append(time.perf_counter() - start)
    ours, peer = (1e3 * float(np.median(times[name])) for name in ("ours", "torch"))
    keys = f"{length // 8} to {length}" if ragged else length
    print(f"| {rows} | {keys} | {kv_heads} x {size} | {ours:,.2f} | {peer:,.2f} | {peer / ours:.2f} |", flush=True)


if __name__ == "__main__":
  main()
