"""Everything that only a GPU can show, in one run: the kernels, a train step's MFU, and decoding's share of the bandwidth.

  python -m tests.bench.gpu [attention] [step] [paged] [decode] [--quick]     # markdown; --quick takes sizes that a CPU can run

Peers are taken where they are installed: cuDNN through jax.nn.dot_product_attention, tokamax, torch's flash attention.
They are timed in turns with ours, and medians are printed. TFLOP/s count causal attention at half, and the backward
pass 2.5 times the forward one (FlashAttention, arXiv 2205.14135: five products against two); packed rows count what
their documents see.
"""

import concurrent.futures
import contextlib
import functools
import importlib.util
import itertools
import os
import subprocess
import sys
import time

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from bluelm_jax.data import loader
from bluelm_jax.data.tokenizer import Tokenizer
from bluelm_jax.inference.engine import Engine
from bluelm_jax.inference.request import Options
from bluelm_jax.inference.request import plain_prompt
from bluelm_jax.kernels.attention import api
from bluelm_jax.kernels.paged import api as paged
from bluelm_jax.kernels.paged import quantize
from bluelm_jax.models import serialize
from bluelm_jax.models.presets import PRESETS
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
PAGE, READ = 16, 32 if QUICK else 2048  # tokens of a page in the engine; of prompts in a step
ROUNDS, CALLS = (3, 1) if QUICK else (7, 3)
OURS = ("xla",) if QUICK else ("pallas_gpu", "pallas_triton")


def inputs(length: int, packed: bool):
  """q, k, v, d_out bfloat16 [B, S, heads, D]; of a row, positions, segment ids, lengths of documents; pairs that meet in it."""
  rng, rows = np.random.default_rng(length), TOKENS // length
  arrays = [jnp.asarray(rng.standard_normal((rows, length, h, HEAD_DIM)), jnp.bfloat16) for h in (HEADS, KV_HEADS, KV_HEADS, HEADS)]
  documents = []
  while sum(documents) < length:
    documents.append(max(16, int(rng.lognormal(np.log(1000), 1.0))) if packed else length)
  documents[-1] -= sum(documents) - length
  positions = np.concatenate([np.arange(n) for n in documents])
  segments = np.repeat(np.arange(1, len(documents) + 1), documents)
  return arrays, positions, segments, documents, float((positions + 1).sum())


def sides(arrays, positions, segments, documents, packed: bool):
  """name -> (forward, forward and backward), each waiting for its result; what is not installed is left out."""
  q, k, v, d_out = arrays
  row = lambda x: jnp.asarray(np.tile(x, (q.shape[0], 1)), jnp.int32)
  numbers = dict(q_positions=row(positions), k_positions=row(positions))
  if packed:
    numbers.update(q_segment_ids=row(segments), k_segment_ids=row(segments))

  def ours(name):
    return lambda numbers, *x: api.attention(*x, **numbers, implementation=name)[0]

  calls = {name: ours(name) for name in OURS}
  if not packed and not QUICK:
    calls["cuDNN"] = lambda _, *x: jax.nn.dot_product_attention(*x, is_causal=True, implementation="cudnn")
  if importlib.util.find_spec("tokamax") and not packed:
    import tokamax

    calls["tokamax"] = lambda _, *x: tokamax.dot_product_attention(*x, is_causal=True)
  found = {}
  for name, call in calls.items():
    forward = jax.jit(call)
    both = jax.jit(lambda numbers, d, *x, call=call: jax.vjp(functools.partial(call, numbers), *x)[1](d))
    found[name] = (functools.partial(forward, numbers, q, k, v), functools.partial(both, numbers, d_out, q, k, v))
  return found | torch_sides(q.shape, documents, packed)


def torch_sides(shape, documents, packed: bool):
  """Torch's flash attention on causal rows, or on packed ones as documents end to end."""
  if importlib.util.find_spec("torch") is None:
    return {}
  import torch

  if not torch.cuda.is_available():
    return {}
  from torch.nn.attention import SDPBackend
  from torch.nn.attention import sdpa_kernel

  rows, length, _, _ = shape
  new = lambda *size: torch.randn(size, device="cuda", dtype=torch.bfloat16, requires_grad=True)
  if packed:
    try:
      from torch.nn.attention.varlen import varlen_attn
    except ImportError:
      return {}
    q, k, v, d_out = (new(rows * length, HEADS, HEAD_DIM) for _ in range(4))  # not every version takes fewer KV heads
    ends = torch.tensor([0, *np.cumsum(documents * rows)], device="cuda", dtype=torch.int32)
    causal = {"window_size": (-1, 0)} if "window_size" in varlen_attn.__kwdefaults__ else {"is_causal": True}
    attend = lambda: varlen_attn(q, k, v, ends, ends, max(documents), max(documents), **causal)
  else:
    q, k, v, d_out = (new(rows, h, length, HEAD_DIM) for h in (HEADS, KV_HEADS, KV_HEADS, HEADS))
    attend = lambda: torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)

  def run(backward):
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
      out = attend()
    return torch.autograd.grad(out, (q, k, v), d_out) if backward else out

  return {"torch flash": (functools.partial(run, False), functools.partial(run, True))}


def wait(result):
  if isinstance(jax.tree.leaves(result)[0], jax.Array):
    jax.block_until_ready(result)
  else:
    import torch

    torch.cuda.synchronize()


def medians(runs: dict, rounds: int, calls: int = 1) -> dict:
  """name -> median seconds of a call, all taking turns."""
  with concurrent.futures.ThreadPoolExecutor() as pool:  # the first calls compile
    for result in [pool.submit(run) for run in runs.values()]:
      wait(result.result())
  times = {name: [] for name in runs}
  for _, (name, run) in itertools.product(range(rounds), runs.items()):
    start = time.perf_counter()
    for _ in range(calls):
      result = run()
    wait(result)
    times[name].append((time.perf_counter() - start) / calls)
  return {name: float(np.median(t)) for name, t in times.items()}


def attention_table():
  print("| row | S | side | error against float32 | forward TFLOP/s | backward TFLOP/s |\n|---|---|---|---|---|---|")
  for packed, length in itertools.product((False, True), LENGTHS):
    arrays, positions, segments, documents, pairs = inputs(length, packed)
    flop = 4.0 * arrays[0].shape[0] * HEADS * HEAD_DIM * pairs
    numbers = {f"{side}_{name}": jnp.asarray(x[None], jnp.int32) for side in "qk" for name, x in (("positions", positions), ("segment_ids", segments))}
    with jax.default_matmul_precision("highest"):
      wide = [x[:1].astype(jnp.float32) for x in arrays[:3]]
      expected = np.asarray(jax.jit(functools.partial(api.attention, implementation="xla"))(*wide, **numbers)[0])
    found = sides(arrays, positions, segments, documents, packed)
    times = medians({(name, part): run for name, parts in found.items() for part, run in enumerate(parts)}, ROUNDS, CALLS)
    errors = {name: np.linalg.norm(np.asarray(found[name][0]()[:1], np.float32) - expected) / np.linalg.norm(expected)
              for name in found if name != "torch flash"}  # torch draws its own numbers
    for name in found:
      f, both = times[name, 0], times[name, 1]
      error = f"{errors[name]:.1e}" if name in errors else ""
      print(f"| {'packed' if packed else 'causal'} | {length} | {name} | {error} | {flop / f / 1e12:.1f} | {2.5 * flop / max(both - f, 1e-9) / 1e12:.1f} |", flush=True)


def step_table():
  """Warm train steps of joint training: of the small model, and of BlueLM-2.5-3B, on one GPU."""
  print("\n| step | ms | non-pad tokens/s | MFU with the ViT | without |\n|---|---|---|---|---|")
  for path, rounds in (("stages/joint.py:miniature", 3),) if QUICK else (("stages/joint.py:small", 5), ("layouts/joint_4k.py:h100_1", 3)):
    config = defaults.load(f"{machine.ROOT}/configs/{path}")
    if config.name == "joint_4k_h100_1":  # the step from which sharding/chips.py takes the GPUs' share of products
      config.data.rows, config.data.tile_slots, config.execution.remat = 4, 40, "full"
      config.data.accumulate, config.loss_chunks, config.watch.every = ((0, 1),), 1, 0
      own = defaults.load(f"{machine.ROOT}/configs/stages/joint.py:miniature").data.sources  # the layout's data are not here
      config.data.sources = {}
      defaults.fill(config.data.sources, screens={**own.screens, "share": 0.6}, prose={**own.prose, "share": 0.4, "window": 4096})
    took, tokens, total, vision = step(config, rounds)
    kind = jax.devices()[0].device_kind
    share = lambda flop: f"{100 * flop / took / chips.chip(kind).flops:.1f} %" if kind in chips.CHIPS else "?"
    print(f"| {config.preset}, {config.data.rows} rows of {config.data.length} | {1e3 * took:.1f} | {tokens / took:,.0f} | {share(total)} | {share(total - vision)} |", flush=True)


def step(config, rounds: int):
  """(seconds, tokens, model FLOPs, those of the ViT) of a step."""
  model_config, mesh = stage.described_model(config), rules.make_mesh(config.mesh.to_dict())
  spec, chat = stage.batch_shape(config, model_config, mesh, Tokenizer())
  source = loader.batches(config.data.sources, chat, spec, 0)
  batches = [next(source) for _ in range(4)]
  model, tx = serialize.build(model_config), optimizer_lib.make_optimizer(config.optimizer, config.schedule, config.steps)
  create, _, shardings = stage.abstract_state(config, model, tx, mesh)
  holder = [jax.jit(create, out_shardings=shardings)(jax.random.key(0))]
  run_step = stage.jit_step(config, model, tx, shardings)
  placed = [stage.put_batch(b, sharding=rules.batch_sharding(mesh)) for b in batches]

  def run():
    for batch in placed:
      holder[0], metrics = run_step(holder[0], batch)
    return metrics

  took = medians({"step": run}, rounds)["step"] / len(placed)
  documents = [n for b in batches for ids in b.segment_ids for n in np.bincount(ids)[1:]]
  work = flops.packed(documents, len(batches) * spec.groups * spec.tile_slots)
  model_flop, _ = flops.train(model_config, config.trainable, work)
  tokens = np.mean([(b.segment_ids > 0).sum() for b in batches])
  return took, tokens, model_flop.total / len(batches), (model_flop.vision + model_flop.vision_attention) / len(batches)


def paged_table():
  """One query a row over pages in no order: bytes of keys and values (and scales) against the time, and the bandwidth."""
  print("\n| rows | keys of a row | page | pages of | side | error | us | GB/s | share of the bandwidth |\n|---|---|---|---|---|---|---|---|---|")
  kind, rng = jax.devices()[0].device_kind, np.random.default_rng(0)
  for rows, length in ((2, 256),) if QUICK else itertools.product((1, 8, 64), (4096, 32768)):
    for size, int8 in ((16, False), (64, False), (64, True)):
      pages = rows * length // size
      tables = jnp.asarray(rng.permutation(pages).reshape(rows, -1), jnp.int32)
      new = lambda i, shape: jax.random.normal(jax.random.key(i), shape, jnp.bfloat16)
      q, k, v = new(0, (rows, 1, HEADS, HEAD_DIM)), *(new(i, (pages, KV_HEADS, size, HEAD_DIM)) for i in (1, 2))
      scales = {}
      if int8:
        (k, scales["k_scale"]), (v, scales["v_scale"]) = jax.jit(quantize.quantize)(k), jax.jit(quantize.quantize)(v)
      args = q, k, v, tables, jnp.full((rows, 1), length - 1, jnp.int32)
      runs = {name: functools.partial(jax.jit(functools.partial(paged.attention, implementation=name)), *args, **scales) for name in ("xla", "pallas_triton")}
      times, out = medians(runs, ROUNDS, CALLS), {name: np.asarray(run(), np.float32) for name, run in runs.items()}
      read = sum(x.size * x.dtype.itemsize for x in (k, v, *scales.values()))
      for name, took in times.items():
        error = np.linalg.norm(out[name] - out["xla"]) / np.linalg.norm(out["xla"])
        share = f"{100 * read / took / chips.chip(kind).bandwidth:.1f} %" if kind in chips.CHIPS else "?"
        print(f"| {rows} | {length} | {size} | {k.dtype} | {name} | {error:.1e} | {1e6 * took:.0f} | {read / took / 1e9:,.0f} | {share} |", flush=True)


def decode_table():
  """Greedy decoding by one engine, with random weights in bfloat16: a step a call and several, on a quiet host and on a busy one."""
  model = serialize.build(PRESETS["miniature" if QUICK else "bluelm_2_5_3b"]())
  narrow = lambda key: jax.tree.map(lambda x: x.astype(jnp.bfloat16), nn.meta.unbox(model.init(key, jnp.zeros((1, 8), jnp.int32), method="init_all")["params"]))
  params = jax.jit(narrow)(jax.random.key(0))
  cases, tokens = (((2, 32),), 8) if QUICK else (((8, 512), (1, 512), (32, 512), (8, 3584)), 96)
  pages = max(rows * -(-(prompt + tokens) // PAGE) for rows, prompt in cases)
  c, kind = model.config.decoder, jax.devices()[0].device_kind
  weights = 2 * sum(x.size for x in jax.tree.leaves(params["decoder"]))
  print("\n| steps a call | rows | prompt | busy processes beside | ms a token | tokens/s | share of the bandwidth |\n|---|---|---|---|---|---|---|")
  for steps in (1, 4, 8):
    engine = Engine(model, params, end_ids=(), slots=max(rows for rows, _ in cases), pages=pages, page_size=PAGE, prefill_tokens=READ, steps=steps)
    for (rows, prompt), hogs in [(cases[0], 0), (cases[0], 2 * os.cpu_count())] + ([(case, 0) for case in cases[1:]] if steps == 8 else []):
      with busy(hogs):
        took = decode(engine, rows, prompt, tokens)
      cache = 2 * 2 * rows * (prompt + tokens / 2) * c.num_layers * c.num_kv_heads * c.head_dim
      share = f"{100 * (weights + cache) / took / chips.chip(kind).bandwidth:.1f} %" if kind in chips.CHIPS else "?"
      print(f"| {steps} | {rows} | {prompt} | {hogs} | {1e3 * took:.2f} | {rows / took:,.0f} | {share} |", flush=True)


@contextlib.contextmanager
def busy(count: int):
  """Processes that do nothing but use the host's cores."""
  hogs = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
  try:
    yield
  finally:
    for hog in hogs:
      hog.kill()
      hog.wait()


def decode(engine, rows: int, prompt: int, tokens: int) -> float:
  """Seconds of a step in which all rows draw; the median of three rounds, before them one that compiles."""
  text = np.random.default_rng(0).integers(1, engine.model.config.decoder.vocab_size, (rows, prompt))
  times = []
  for _ in range(4):
    for ids in text:
      engine.submit(plain_prompt(ids), Options(max_tokens=tokens))
    while engine.stats()["running"] < rows:
      engine.step()
    start, drawn = time.perf_counter(), 0
    while engine.stats()["running"] == rows:
      drawn += len(engine.step())
    times.append((time.perf_counter() - start) * rows / drawn)
    while engine.busy:
      engine.step()
    engine.flush()
  return float(np.median(times[1:]))


def main():
  print(f"{machine.line()}, {jax.devices()[0].device_kind}\n")
  tables = {"attention": attention_table, "step": step_table, "paged": paged_table, "decode": decode_table}
  for name in [name for name in tables if name in sys.argv] or tables:
    tables[name]()


if __name__ == "__main__":
  main()
