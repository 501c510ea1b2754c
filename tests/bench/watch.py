"""The miniature's train step with nothing watched, with a look every 10 steps and with one at every step, on the same cores, in one run.

Seconds of the processors are told beside those of the clock, which other work on the machine stretches.

  python -m tests.bench.watch [rounds]     # prints a markdown table
"""

import functools
import sys
import time

from bluelm_jax import process

process.keep_memory()  # as the doors do, before any thread starts

import jax  # noqa: E402
import numpy as np  # noqa: E402

from bluelm_jax.data import loader  # noqa: E402
from bluelm_jax.data.tokenizer import Tokenizer  # noqa: E402
from bluelm_jax.models import serialize  # noqa: E402
from bluelm_jax.sharding import rules  # noqa: E402
from bluelm_jax.training import defaults  # noqa: E402
from bluelm_jax.training import optimizer as optimizer_lib  # noqa: E402
from bluelm_jax.training import stage  # noqa: E402
from tests.bench import machine  # noqa: E402

STEPS = 10  # of each kind in a round
KINDS = (0, 10, 1)  # watch.every


def runner(name, every):
  """(a function that makes STEPS steps of a stage on real batches, the seconds its step took to compile)."""
  config = defaults.load(f"{machine.ROOT}/configs/stages/{name}.py:miniature")
  config.watch.every = every
  model, mesh = serialize.build(stage.described_model(config)), rules.make_mesh()
  spec, chat = stage.batch_shape(config, model.config, mesh, Tokenizer())
  source = loader.batches(config.data.sources, chat, spec, 0)
  batches = [next(source) for _ in range(STEPS)]
  tx = optimizer_lib.make_optimizer(config.optimizer, config.schedule, config.steps)
  create, _, shardings = stage.abstract_state(config, model, tx, mesh)
  holder = [jax.jit(create, out_shardings=shardings)(jax.random.key(0))]
  put = functools.partial(stage.put_batch, sharding=rules.batch_sharding(mesh))
  started = time.perf_counter()
  step = stage.jit_step(config, model, tx, shardings).lower(holder[0], put(batches[0]), None).compile()
  compiled = time.perf_counter() - started

  def run():
    for batch in batches:
      holder[0], metrics = step(holder[0], put(batch), None)
    jax.block_until_ready(metrics)

  return run, compiled


def measure(name, rounds):
  """{every: [(seconds a step, the same of the processors), of every round]} and the compile times; the kinds take turns, the first round warms up."""
  runners = {every: runner(name, every) for every in KINDS}
  took = {every: [] for every in KINDS}
  for i in range(rounds + 1):
    for every in KINDS[:: 1 if i % 2 else -1]:
      started = time.perf_counter(), time.process_time()
      runners[every][0]()
      if i:
        took[every].append(((time.perf_counter() - started[0]) / STEPS, (time.process_time() - started[1]) / STEPS))
  return took, {every: compiled for every, (_, compiled) in runners.items()}


def main():
  rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 9
  print(f"{machine.line()}, float32; {rounds} interleaved rounds of {STEPS} steps\n")
  print("| stage | watched | ms a step (quartiles) | of the processors | more than without, of pairs (quartiles) | of the processors | compiling, s |\n|---|---|---|---|---|---|---|")
  for name in ("text", "joint"):
    took, compiled = measure(name, rounds)
    never = np.array(took[0])
    for every in KINDS:
      steps = ["{1:.1f} ({0:.1f}-{2:.1f})".format(*q) for q in np.quantile(np.array(took[every]) * 1e3, (0.25, 0.5, 0.75), axis=0).T]
      more = ["{1:+.1%} ({0:+.1%} to {2:+.1%})".format(*q) if every else "" for q in np.quantile(np.array(took[every]) / never - 1, (0.25, 0.5, 0.75), axis=0).T]
      print(f"| {name} | {f'every {every}' if every else 'never'} | {' | '.join(steps + more)} | {compiled[every]:.1f} |", flush=True)


if __name__ == "__main__":
  main()
