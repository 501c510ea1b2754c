"""Everything that only a GPU can show, in one run: kernels' correctness and speed, and a train step's MFU.

  python -m tests.bench.gpu [--quick]     # prints markdown; --quick takes sizes that a CPU can run, to try the script

Peers are taken where they are installed: cuDNN through jax.nn.dot_product_attention, tokamax, torch's flash attention.
TFLOP/s count causal attention at half, and the backward pass 2.5 times the forward one (FlashAttention, arXiv
2205.14135: five products against two); packed rows count what their documents see.
"""

import functools
import importlib.util
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

from bluelm_jax.data import loader
from bluelm_jax.data.tokenizer import Tokenizer
from bluelm_jax.kernels.attention import api
from bluelm_jax.models import serialize
from bluelm_jax.sharding import chips
from bluelm_jax.sharding import rules
from bluelm_jax.training import defaults
from bluelm_jax.training import flops
from bluelm_jax.training import optimizer as optimizer_lib
from bluelm_jax.training import stage
from tests.bench import machine

QUICK = "--quick" in sys.argv
HEADS, KV_HEADS, HEAD_DIM = (4, 2, 64) if QUICK else (16, 4, 128)
TOKENS, LENGTHS = (512, (256,)) if QUICK else (32768, (4096, 32768))
ROUNDS = 3 if QUICK else 20
OURS = ("xla",) if QUICK else ("pallas_gpu", "pallas_triton")


def inputs(length: int, packed: bool):
  """q, k, v, d_out bfloat16 [B, S, heads, D], positions and segment ids [B, S], pairs of a query and a key that meet in a row."""
  rng, rows = np.random.default_rng(length), TOKENS // length
  arrays = [jnp.asarray(rng.standard_normal((rows, length, h, HEAD_DIM)), jnp.bfloat16) for h in (HEADS, KV_HEADS, KV_HEADS, HEADS)]
  documents = []
  while sum(documents) < length:
    documents.append(max(16, int(rng.lognormal(np.log(1000), 1.0))) if packed else length)
  positions = np.concatenate([np.arange(n) for n in documents])[:length]
  segments = np.repeat(np.arange(1, len(documents) + 1), documents)[:length]
  row = lambda x: jnp.asarray(np.tile(x, (rows, 1)), jnp.int32)
  return arrays, row(positions), row(segments), float((positions + 1).sum())


def sides(positions, segments, packed: bool):
  """name -> attention(q, k, v); what is not installed, or takes no packed rows, is left out."""
  def ours(name):
    ids = dict(q_segment_ids=segments, k_segment_ids=segments) if packed else {}
    return lambda q, k, v: api.attention(q, k, v, q_positions=positions, k_positions=positions, implementation=name, **ids)[0]

  found = {name: ours(name) for name in OURS}
  if not packed and not QUICK:
    found["cuDNN"] = functools.partial(jax.nn.dot_product_attention, is_causal=True, implementation="cudnn")
  if importlib.util.find_spec("tokamax") and not packed:
    import tokamax

    found["tokamax"] = functools.partial(tokamax.dot_product_attention, is_causal=True)
  return found


def seconds(run) -> float:
  """Median of warm runs."""
  jax.block_until_ready(run())
  times = []
  for _ in range(ROUNDS):
    start = time.perf_counter()
    jax.block_until_ready(run())
    times.append(time.perf_counter() - start)
  return float(np.median(times))


def torch_rates(length: int, flop: float) -> tuple[float, float] | None:
  """TFLOP/s of torch's flash attention on causal rows, forward and backward."""
  if importlib.util.find_spec("torch") is None:
    return None
  import torch
  from torch.nn.attention import SDPBackend
  from torch.nn.attention import sdpa_kernel

  if not torch.cuda.is_available():
    return None
  shape = lambda heads: (TOKENS // length, heads, length, HEAD_DIM)
  q, k, v = (torch.randn(shape(h), device="cuda", dtype=torch.bfloat16, requires_grad=True) for h in (HEADS, KV_HEADS, KV_HEADS))
  d_out = torch.randn(shape(HEADS), device="cuda", dtype=torch.bfloat16)

  def timed(run):
    run()
    times = []
    for _ in range(ROUNDS):
      torch.cuda.synchronize()
      start = time.perf_counter()
      run()
      torch.cuda.synchronize()
      times.append(time.perf_counter() - start)
    return float(np.median(times))

  with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
    call = lambda: torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    forward, both = timed(call), timed(lambda: torch.autograd.grad(call(), (q, k, v), d_out))
  return flop / forward / 1e12, 2.5 * flop / (both - forward) / 1e12


def attention_table():
  print("| row | S | side | error against float32 | forward TFLOP/s | backward TFLOP/s |\n|---|---|---|---|---|---|")
  for packed in (False, True):
    for length in LENGTHS:
      (q, k, v, d_out), positions, segments, pairs = inputs(length, packed)
      flop = 4.0 * q.shape[0] * HEADS * HEAD_DIM * pairs
      numbers = dict(q_positions=positions[:1], k_positions=positions[:1], q_segment_ids=segments[:1], k_segment_ids=segments[:1])
      wide = [x[:1].astype(jnp.float32) for x in (q, k, v)]
      expected = np.asarray(api.attention(*wide, implementation="xla", **numbers)[0])
      for name, call in sides(positions, segments, packed).items():
        forward = jax.jit(call)
        both = jax.jit(lambda q, k, v, d, call=call: jax.vjp(call, q, k, v)[1](d))
        error = np.linalg.norm(np.asarray(forward(q, k, v)[:1], np.float32) - expected) / np.linalg.norm(expected)
        f = seconds(lambda: forward(q, k, v))
        b = seconds(lambda: both(q, k, v, d_out)) - f
        print(f"| {'packed' if packed else 'causal'} | {length} | {name} | {error:.1e} | {flop / f / 1e12:.1f} | {2.5 * flop / max(b, 1e-9) / 1e12:.1f} |", flush=True)
      rates = None if packed else torch_rates(length, flop)
      if rates:
        print(f"| causal | {length} | torch flash | | {rates[0]:.1f} | {rates[1]:.1f} |", flush=True)


def step_table():
  """Warm steps of the joint stage at the size of one GPU."""
  config = defaults.load(f"{machine.ROOT}/configs/stages/joint.py:{'miniature' if QUICK else 'small'}")
  model_config, mesh = stage.described_model(config), rules.make_mesh()
  spec, chat = stage.batch_shape(config, model_config, mesh, Tokenizer())
  source = loader.batches(config.data.sources, chat, spec, 0)
  batches = [next(source) for _ in range(4)]
  model, tx = serialize.build(model_config), optimizer_lib.make_optimizer(config.optimizer, config.schedule, config.steps)
  create, _, shardings = stage.abstract_state(config, model, tx, mesh)
  state = jax.jit(create, out_shardings=shardings)(jax.random.key(0))
  step = stage.jit_step(config, model, tx, shardings)
  put = functools.partial(stage.put_batch, sharding=rules.batch_sharding(mesh))
  placed, holder = [put(b) for b in batches], [state]

  def run():
    for batch in placed:
      holder[0], metrics = step(holder[0], batch)
    return metrics

  took = seconds(run) / len(placed)
  tokens = np.mean([(b.segment_ids > 0).sum() for b in batches])
  documents = [n for b in batches for ids in b.segment_ids for n in np.bincount(ids)[1:]]
  model, _ = flops.train(model_config, config.trainable, documents, len(batches) * spec.groups * spec.tile_slots)
  total, vision = model.total / len(batches), (model.vision + model.vision_attention) / len(batches)
  kind = jax.devices()[0].device_kind
  peak = chips.chip(kind).flops if kind in chips.CHIPS else float("nan")
  print(f"\n{config.preset}, joint stage: {1e3 * took:.1f} ms a step, {tokens / took:,.0f} non-pad tokens/s, "
        f"MFU {100 * total / took / peak:.1f} % with the ViT, {100 * (total - vision) / took / peak:.1f} % without")


def main():
  print(f"{machine.line()}, {jax.devices()[0].device_kind}\n")
  attention_table()
  step_table()


if __name__ == "__main__":
  main()
