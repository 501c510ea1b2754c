"""One update of each optimizer, ours as a stage makes it against optax's own, on the same cores, in one run.

  python -m tests.bench.optimizers [rounds]     # prints a markdown table

Both sides clip by the global norm first. Beside Moonlight stands optax's Muon with its `consistent_rms`.
"""

import sys
import time

from bluelm_jax import process

process.keep_memory()  # as the doors do, before any thread starts

import flax.linen as nn  # noqa: E402
import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import optax  # noqa: E402

from bluelm_jax.models import presets  # noqa: E402
from bluelm_jax.models import serialize  # noqa: E402
from bluelm_jax.training import defaults  # noqa: E402
from bluelm_jax.training import muon  # noqa: E402
from bluelm_jax.training import optimizer as optimizer_lib  # noqa: E402
from tests.bench import machine  # noqa: E402


def ours(name, **changes):
  c = defaults.stage()
  c.optimizer.update(name=name, **changes)
  c.schedule.update(kind="constant", warmup=0)
  return optimizer_lib.make_optimizer(c.optimizer, c.schedule, 1000)


def optaxs(name, **muons):
  o = defaults.stage().optimizer
  if name == "adamw":
    update = optax.adamw(o.learning_rate, o.b1, o.b2, o.eps, weight_decay=o.weight_decay)
  else:
    axes = lambda params: {p: (a := muon.axes(p)) and optax.contrib.MuonDimensionNumbers(*a) for p in params}
    update = optax.contrib.muon(
        o.muon_learning_rate, weight_decay=o.weight_decay, adam_learning_rate=o.learning_rate, muon_weight_dimension_numbers=axes, **muons)
  return optax.chain(optax.clip_by_global_norm(o.clip_norm), update)


PAIRS = {
    "AdamW": (ours("adamw"), optaxs("adamw")), "AdamW, moments in bfloat16": (ours("adamw", moment_dtype="bfloat16"), optaxs("adamw")),
    "Muon": (ours("muon"), optaxs("muon")), "Moonlight": (ours("moonlight"), optaxs("muon", consistent_rms=0.2))}


def miniature():
  model = serialize.build(presets.miniature())
  init = lambda: nn.meta.unbox(model.init(jax.random.key(0), jnp.zeros((1, 8), jnp.int32), method="init_all")["params"])
  return optimizer_lib.paths(jax.jit(init)())


def stack():
  return {"decoder/layers/mlp/up": jnp.ones((1, 2560, 7296))}


def runner(tx, params):
  """A function that makes one update."""
  grads = {p: jax.random.normal(jax.random.key(i), v.shape) for i, (p, v) in enumerate(sorted(params.items()))}

  def update(params, state, grads):
    updates, state = tx.update(grads, state, params)
    return optax.apply_updates(params, updates), state

  step = jax.jit(update, donate_argnums=(0, 1))
  holder = [(jax.tree.map(jnp.copy, params), tx.init(params))]

  def run():
    holder[0] = jax.block_until_ready(step(*holder[0], grads))

  return run


def medians(sides, rounds):
  """Milliseconds of each, taking turns; the first two rounds warm up."""
  took = [[] for _ in sides]
  for i in range(rounds + 2):
    for k in (0, 1) if i % 2 else (1, 0):
      started = time.perf_counter()
      sides[k]()
      if i >= 2:
        took[k].append(1e3 * (time.perf_counter() - started))
  return [np.quantile(t, (0.25, 0.5, 0.75)) for t in took]


def main():
  rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 15
  print(f"{machine.line()}, optax {optax.__version__}, float32; {rounds} interleaved rounds, a fifth of them on the stack\n")
  print("| parameters | optimizer | ours, ms (quartiles) | optax, ms (quartiles) | ratio of medians |\n|---|---|---|---|---|")
  for name, params, count in (("the miniature's", miniature(), rounds), ("one 2560 x 7296", stack(), max(rounds // 5, 1))):
    for optimizer, pair in PAIRS.items():
      mine, other = medians([runner(tx, params) for tx in pair], count)
      cell = lambda q: "{1:,.1f} ({0:,.1f}-{2:,.1f})".format(*q)
      print(f"| {name} | {optimizer} | {cell(mine)} | {cell(other)} | {mine[1] / other[1]:.2f} |", flush=True)


if __name__ == "__main__":
  main()
