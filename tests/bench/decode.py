"""The engine on this CPU: output tokens a second beside transformers' `generate`, what sharing a prompt saves, and latency under load.

  python -m tests.bench.decode [rounds]     # prints markdown tables
"""

import statistics
import sys
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers

from bluelm_jax import load_pretrained
from bluelm_jax.inference.engine import Engine
from bluelm_jax.inference.request import Options
from bluelm_jax.inference.request import plain_prompt
from bluelm_jax.kernels.paged import api as paged
from tests.bench import machine

CONFIG = dict(
    vocab_size=32_000, hidden_size=512, num_hidden_layers=8, num_attention_heads=8, num_key_value_heads=2, head_dim=64, intermediate_size=1536,
    max_position_embeddings=2048, tie_word_embeddings=True)
BATCHES = {1: 8, 8: 64, 32: 96}  # how many at once: requests in all


def ragged(count: int, rng) -> list[tuple[np.ndarray, int]]:
  """(prompt of 16 to 256 tokens, tokens of its answer: a median of 48, at most 384)."""
  lengths = np.clip(rng.lognormal(np.log(48), 1.0, count), 4, 384).astype(int).tolist()
  return [(rng.integers(1, 32_000, n), new) for n, new in zip(rng.integers(16, 257, count), lengths)]


def ours(engine: Engine, requests, batch: int, **options) -> float:
  """Seconds until all are answered, at most `batch` of them in the engine at a time; nothing is known before."""
  engine.flush()
  start, waiting, inside, said = time.perf_counter(), list(requests), 0, 0
  while waiting or inside:
    while waiting and inside < batch:
      prompt, new = waiting.pop(0)
      engine.submit(plain_prompt(prompt), Options(max_tokens=new, stop_ids=(), **options))
      inside += options.get("n", 1)
    for token in engine.step():
      said += 1
      inside -= token.finish is not None
  assert said == sum(new for _, new in requests) * options.get("n", 1)
  return time.perf_counter() - start


def theirs(model, requests, batch: int) -> float:
  """The same in batches in the same order; a batch ends with its longest answer."""
  start = time.perf_counter()
  for at in range(0, len(requests), batch):
    part = requests[at : at + batch]
    longest, new = (max(x) for x in zip(*((len(p), n) for p, n in part)))
    ids, mask = np.zeros((2, len(part), longest), np.int64)
    for i, (p, _) in enumerate(part):
      ids[i, longest - len(p) :], mask[i, longest - len(p) :] = p, 1
    with torch.no_grad():
      out = model.generate(
          torch.tensor(ids), attention_mask=torch.tensor(mask), do_sample=False, min_new_tokens=new, max_new_tokens=new, pad_token_id=0)
    assert out.shape[1] == longest + new
  return time.perf_counter() - start


def throughput(engine, model, rounds: int, equal: int | None = None):
  """`equal`: tokens of every answer, in place of ragged ones; then there are as many requests as are answered at once."""
  print(f"\n{'Ragged answers' if equal is None else f'Answers of {equal} tokens'}:\n\n| at once | requests | engine, tokens/s | transformers {transformers.__version__}, tokens/s | ratio |\n|---|---|---|---|---|")
  for batch, count in BATCHES.items():
    requests, times = ragged(count, np.random.default_rng(batch)), []
    if equal is not None:
      requests, count = [(prompt, equal) for prompt, _ in requests[:batch]], batch
    ours(engine, requests, batch)  # compiles
    for _ in range(rounds):
      times.append((ours(engine, requests, batch), theirs(model, requests, batch)))
    mine, other = (statistics.median(t) for t in zip(*times))
    said = sum(new for _, new in requests)
    print(f"| {batch} | {count} | {said / mine:,.0f} | {said / other:,.0f} | {statistics.median(b / a for a, b in times):.2f} |", flush=True)


def parts(engine):
  """Milliseconds of a step that draws for 32 samples of 200 to 264 tokens, and of its attention alone."""
  rng, layers = np.random.default_rng(0), engine.model.config.num_layers
  for _ in range(32):
    engine.submit(plain_prompt(rng.integers(1, 32_000, 200)), Options(max_tokens=64, stop_ids=()))
  steps = []
  while engine.busy:
    start, drawing = time.perf_counter(), engine.stats()
    engine.step()
    if drawing["running"] == 32 and not drawing["waiting"]:
      steps.append(time.perf_counter() - start)
  c = engine.model.config
  k, v = (jnp.ones((2401, c.num_kv_heads, 16, c.head_dim)) for _ in range(2))
  args = jnp.ones((32, 1, c.num_heads, c.head_dim)), k, v, rng.integers(1, 2400, (32, 17)), rng.integers(200, 264, (32, 1))
  attend, times = jax.jit(paged.attention), []
  for _ in range(20):
    start = time.perf_counter()
    attend(*args).block_until_ready()
    times.append(time.perf_counter() - start)
  step, attention = 1000 * statistics.median(steps), 1000 * layers * statistics.median(times)
  print(f"\nA step of 32 rows takes {step:.0f} ms, {attention:.0f} of them attention to pages in {layers} layers.", flush=True)


def sharing(engine, rounds: int):
  """Sixteen samples of one prompt, and of sixteen that differ in their first token."""
  rng, times = np.random.default_rng(0), []
  long = rng.integers(1, 32_000, 1536)
  apart = [(np.concatenate([[i + 1], long[1:]]), 16) for i in range(16)]
  for _ in range(rounds + 1):  # the first compiles
    times.append((ours(engine, [(long, 16)], 16, temperature=1.0, n=16), ours(engine, apart, 16, temperature=1.0)))
  shared, alone = (statistics.median(t) for t in zip(*times[1:]))
  print(f"\n16 samples of 16 tokens of one prompt of 1,536: {shared:.2f} s; of 16 prompts that share no page: {alone:.2f} s; ratio {alone / shared:.1f}", flush=True)


def latency(engine, rate: float, seconds: float = 20.0):
  """Requests arrive at random, `rate` a second: milliseconds to the first token, and between tokens."""
  rng = np.random.default_rng(int(10 * rate))
  arrivals = np.cumsum(rng.exponential(1 / rate, int(rate * seconds)))
  requests = ragged(len(arrivals), rng)
  came, last, first, between = {}, {}, [], []
  start, at = time.perf_counter(), 0
  while at < len(arrivals) or engine.busy:
    now = time.perf_counter() - start
    while at < len(arrivals) and arrivals[at] <= now:
      prompt, new = requests[at]
      came[engine.submit(plain_prompt(prompt), Options(max_tokens=new, stop_ids=()))] = arrivals[at]
      at += 1
    tokens = engine.step() if engine.busy else time.sleep(0.001) or []
    now = time.perf_counter() - start
    for t in tokens:
      (between if t.request in last else first).append(now - last.get(t.request, came[t.request]))
      last[t.request] = now
  percent = lambda x: " / ".join(f"{1000 * np.percentile(x, p):,.0f}" for p in (50, 99))
  print(f"| {rate:g} | {percent(first)} | {percent(between)} | {sum(new for _, new in requests) / now:,.0f} |", flush=True)


def main(rounds: int = 3):
  torch.manual_seed(0)
  model = transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**CONFIG)).eval()
  with tempfile.TemporaryDirectory() as directory:
    model.save_pretrained(directory)
    engine = Engine(*load_pretrained(directory), end_ids=(), slots=32, pages=2400)
  size = sum(p.numel() for p in model.parameters())
  print(f"{machine.line()}, torch {torch.__version__}; a Qwen3 of {size / 1e6:.0f} M parameters in float32, random weights, {rounds} rounds, medians")
  throughput(engine, model, rounds)
  throughput(engine, model, rounds, equal=64)
  parts(engine)
  sharing(engine, rounds)
  print("\n| requests a second | first token, ms, p50 / p99 | between tokens, ms, p50 / p99 | tokens/s |\n|---|---|---|---|")
  for rate in (0.5, 1.0, 2.0, 4.0):
    latency(engine, rate)


if __name__ == "__main__":
  main(*map(int, sys.argv[1:]))
