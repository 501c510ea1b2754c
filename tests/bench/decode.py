"""The engine on this CPU: output tokens a second beside transformers' `generate`, what sharing a prompt saves, and latency under load.

  python -m tests.bench.decode [rounds]     # prints markdown tables
"""

import dataclasses
import statistics
import sys
import tempfile
import time

import numpy as np
import torch
import transformers

from bluelm_jax import load_pretrained
from bluelm_jax.inference.engine import Engine
from bluelm_jax.inference.request import Options
from bluelm_jax.inference.request import plain_prompt
from tests.bench import machine

CONFIG = dict(
    vocab_size=32_000, hidden_size=512, num_hidden_layers=8, num_attention_heads=8, num_key_value_heads=2, head_dim=64, intermediate_size=1536,
    max_position_embeddings=2048, tie_word_embeddings=True)
NEW = 64  # tokens of every answer
BATCHES = (1, 8, 32)


def ragged(count: int, rng) -> list[np.ndarray]:
  return [rng.integers(1, 32_000, n) for n in rng.integers(16, 257, count)]


def ours(engine: Engine, prompts, options: Options) -> float:
  """Seconds from all prompts at once to the last token; nothing is known before."""
  engine.flush()
  start = time.perf_counter()
  answers = engine.generate([plain_prompt(p) for p in prompts], options)
  took = time.perf_counter() - start
  assert all(len(sample) == options.max_tokens for answer in answers for sample in answer)
  return took


def theirs(model, prompts) -> float:
  longest = max(map(len, prompts))
  ids, mask = np.zeros((2, len(prompts), longest), np.int64)
  for i, p in enumerate(prompts):
    ids[i, longest - len(p) :], mask[i, longest - len(p) :] = p, 1
  start = time.perf_counter()
  with torch.no_grad():
    out = model.generate(
        torch.tensor(ids), attention_mask=torch.tensor(mask), do_sample=False, min_new_tokens=NEW, max_new_tokens=NEW, pad_token_id=0)
  took = time.perf_counter() - start
  assert out.shape[1] == longest + NEW
  return took


def throughput(engine, model, rounds: int):
  print(f"\n| prompts of 16 to 256 tokens, {NEW} new ones each | engine, tokens/s | transformers {transformers.__version__}, tokens/s | ratio |\n|---|---|---|---|")
  for batch in BATCHES:
    prompts, times = ragged(batch, np.random.default_rng(batch)), []
    for _ in range(rounds + 1):  # the first compiles
      times.append((ours(engine, prompts, Options(max_tokens=NEW, stop_ids=())), theirs(model, prompts)))
    mine, other = (statistics.median(t) for t in zip(*times[1:]))
    ratio = statistics.median(b / a for a, b in times[1:])
    print(f"| {batch} | {batch * NEW / mine:,.0f} | {batch * NEW / other:,.0f} | {ratio:.2f} |", flush=True)


def sharing(engine, rounds: int):
  """Sixteen samples of one prompt, and of sixteen that differ in their first token."""
  rng, times = np.random.default_rng(0), []
  long, options = rng.integers(1, 32_000, 1536), Options(max_tokens=16, temperature=1.0, stop_ids=())
  apart = [np.concatenate([[i + 1], long[1:]]) for i in range(16)]
  for _ in range(rounds + 1):
    times.append((ours(engine, [long], dataclasses.replace(options, n=16)), ours(engine, apart, options)))
  shared, alone = (statistics.median(t) for t in zip(*times[1:]))
  print(f"\n16 samples of 16 tokens of one prompt of 1,536: {shared:.2f} s; of 16 prompts that share no page: {alone:.2f} s; ratio {alone / shared:.1f}", flush=True)


def latency(engine, rate: float, seconds: float = 20.0):
  """Requests arrive at random, `rate` a second: milliseconds to the first token, and between tokens."""
  rng = np.random.default_rng(int(10 * rate))
  arrivals = np.cumsum(rng.exponential(1 / rate, int(rate * seconds)))
  prompts = ragged(len(arrivals), rng)
  came, last, first, between = {}, {}, [], []
  start, at = time.perf_counter(), 0
  while at < len(arrivals) or engine.busy:
    now = time.perf_counter() - start
    while at < len(arrivals) and arrivals[at] <= now:
      came[engine.submit(plain_prompt(prompts[at]), Options(max_tokens=NEW, stop_ids=()))] = arrivals[at]
      at += 1
    tokens = engine.step() if engine.busy else time.sleep(0.001) or []
    now = time.perf_counter() - start
    for t in tokens:
      (between if t.request in last else first).append(now - last.get(t.request, came[t.request]))
      last[t.request] = now
  percent = lambda x: " / ".join(f"{1000 * np.percentile(x, p):,.0f}" for p in (50, 99))
  print(f"| {rate:g} | {percent(first)} | {percent(between)} | {len(arrivals) * NEW / now:,.0f} |", flush=True)


def main(rounds: int = 5):
  torch.manual_seed(0)
  model = transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**CONFIG)).eval()
  with tempfile.TemporaryDirectory() as directory:
    model.save_pretrained(directory)
    engine = Engine(*load_pretrained(directory), end_ids=(), slots=32, pages=2400)
  size = sum(p.numel() for p in model.parameters())
  print(f"{machine.line()}, torch {torch.__version__}; a Qwen3 of {size / 1e6:.0f} M parameters in float32, random weights, {rounds} rounds, medians")
  throughput(engine, model, rounds)
  sharing(engine, rounds)
  print("\n| requests a second | first token, ms, p50 / p99 | between tokens, ms, p50 / p99 | tokens/s |\n|---|---|---|---|")
  for rate in (0.5, 1.0, 2.0, 4.0):
    latency(engine, rate)


if __name__ == "__main__":
  main(*map(int, sys.argv[1:]))
