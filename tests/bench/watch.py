"""The miniature's train step with nothing watched and with a look every 10 steps, on the same cores, in one run, taking turns step by step.

A machine's speed drifts by more than a look costs. So each step stands beside one without a watch on the same batch, and what
watching costs is a median of ratios of such pairs, of steps that look and of the nine between them, weighed 1 to 9. Seconds of the
processors are told beside those of the clock, which other work on the machine stretches.

  python -m tests.bench.watch [rounds]     # of 10 steps; prints a markdown table
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

EVERY = 10


def runner(name, every):
  """(a function that makes a step of a stage on one of EVERY real batches, the seconds it took to compile)."""
  config = defaults.load(f"{machine.ROOT}/configs/stages/{name}.py:miniature")
  config.watch.every = every
  model, mesh = serialize.build(stage.described_model(config)), rules.make_mesh()
  spec, chat = stage.batch_shape(config, model.config, mesh, Tokenizer())
  source = loader.batches(config.data.sources, chat, spec, 0)
  put = functools.partial(stage.put_batch, sharding=rules.batch_sharding(mesh))
  batches = [put(next(source)) for _ in range(EVERY)]
  tx = optimizer_lib.make_optimizer(config.optimizer, config.schedule, config.steps)
  create, _, shardings = stage.abstract_state(config, model, tx, mesh)
  holder = [jax.jit(create, out_shardings=shardings)(jax.random.key(0))]
  started = time.perf_counter()
  step = stage.jit_step(config, model, tx, shardings).lower(holder[0], batches[0], None).compile()
  compiled = time.perf_counter() - started

  def run(number):
    holder[0], metrics = step(holder[0], batches[number % EVERY], None)
    jax.block_until_ready(metrics)

  return run, compiled


def seconds(run, number):
  """(by the clock, of the processors)."""
  started = time.perf_counter(), time.process_time()
  run(number)
  return time.perf_counter() - started[0], time.process_time() - started[1]


def measure(name, rounds):
  """Seconds [rounds, EVERY, (plain, watched), (clock, processors)], the last step of a round looks; and the compile times."""
  runners = [runner(name, every) for every in (0, EVERY)]
  took = np.zeros((rounds + 1, EVERY, 2, 2))
  for number in range((rounds + 1) * EVERY):
    for side in (0, 1) if (number + number // EVERY) % 2 else (1, 0):  # also of looks each comes first in half of the rounds
      took[number // EVERY, number % EVERY, side] = seconds(runners[side][0], number)
  return took[1:], [compiled for _, compiled in runners]  # the first round warms up


def costs(took):
  """[(clock, processors)] of what is watched over what is not: of steps between looks, of looks, and of both as they come."""
  ratios = took[:, :, 1] / took[:, :, 0] - 1
  between, look = np.median(ratios[:, :-1], axis=(0, 1)), np.median(ratios[:, -1], axis=0)
  return np.stack([between, look, (between * (EVERY - 1) + look) / EVERY])


def main():
  rounds, rng = int(sys.argv[1]) if len(sys.argv) > 1 else 30, np.random.default_rng(0)
  print(f"{machine.line()}, float32; {rounds} rounds of {EVERY} pairs of steps; in brackets 95 % of 2,000 draws of rounds\n")
  print("| stage | ms a step, nothing watched | of the processors | a step between looks | a look | together | of the processors | compiling, s |\n|---|---|---|---|---|---|---|---|")
  for name in ("text", "joint"):
    took, (plain, watched) = measure(name, rounds)
    found, draws = costs(took), np.array([costs(took[rng.integers(rounds, size=rounds)]) for _ in range(2000)])
    low, high = np.quantile(draws, (0.025, 0.975), axis=0)
    cell = lambda i, kind: f"{found[i, kind]:+.1%} [{low[i, kind]:+.1%}, {high[i, kind]:+.1%}]"
    clock, processors = np.median(took[:, :, 0], axis=(0, 1)) * 1e3
    print(f"| {name} | {clock:.1f} | {processors:.1f} | {cell(0, 0)} | {cell(1, 0)} | {cell(2, 0)} | {cell(2, 1)} | {plain:.1f}, {watched:.1f} |", flush=True)


if __name__ == "__main__":
  main()
