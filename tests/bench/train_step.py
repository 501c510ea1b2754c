"""The miniature's train step against the same architecture in torch, on the same cores, in one run.

  python -m tests.bench.train_step [rounds]     # prints a markdown table
"""

import functools
import sys
import time

from bluelm_jax import process

process.keep_memory()  # as the doors do, before any thread starts

import flax.linen as nn  # noqa: E402
import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402

from bluelm_jax.data import loader  # noqa: E402
from bluelm_jax.data.tokenizer import Tokenizer  # noqa: E402
from bluelm_jax.models import presets  # noqa: E402
from bluelm_jax.models import serialize  # noqa: E402
from bluelm_jax.sharding import rules  # noqa: E402
from bluelm_jax.training import defaults  # noqa: E402
from bluelm_jax.training import optimizer as optimizer_lib  # noqa: E402
from bluelm_jax.training import stage  # noqa: E402
from bluelm_jax.training import state as state_lib  # noqa: E402
from tests.bench import machine  # noqa: E402
from tests.bench.torch_peer import Peer  # noqa: E402

STEPS = 8  # of each side in a round


def prepare(name):
  """(model, AdamW config, flat initial parameters, real batches) of a stage."""
  config = defaults.load(f"{machine.ROOT}/configs/stages/{name}.py:miniature")
  config.optimizer.name = "adamw"  # both sides have it
  model = serialize.build(presets.miniature())
  mesh = rules.make_mesh()
  spec, chat = stage.batch_shape(config, model.config, mesh, Tokenizer())
  source = loader.batches(config.data.sources, chat, spec, 0)
  batches = [next(source) for _ in range(STEPS)]
  init = functools.partial(model.init, method="init_all")
  params = nn.meta.unbox(jax.jit(init)(jax.random.key(0), jnp.zeros((1, 8), jnp.int32)))["params"]
  return model, config, {p: np.array(v) for p, v in optimizer_lib.paths(params).items()}, batches, mesh


def ours(model, config, flat, batches, mesh):
  """A function that makes STEPS steps and returns the last loss."""
  tx = optimizer_lib.make_optimizer(config.optimizer, config.schedule, config.steps)
  trainable = jax.tree.map(jnp.array, flat)
  holder = [state_lib.TrainState(jnp.int32(0), trainable, {}, tx.init(trainable))]
  step = jax.jit(state_lib.make_train_step(model, tx, len(config.data.sources)), donate_argnums=0)
  put = functools.partial(stage.put_batch, sharding=rules.batch_sharding(mesh))

  def run(steps=STEPS):
    for batch in batches[:steps]:
      holder[0], metrics = step(holder[0], put(batch))
    return float(metrics["loss"])

  return run


def theirs(model, config, flat, batches):
  peer, o = Peer(model.config, flat), config.optimizer
  # Fused AdamW is torch's fastest on CPU.
  optimizer = torch.optim.AdamW(peer.parameters(), o.learning_rate, (o.b1, o.b2), o.eps, o.weight_decay, fused=True)
  tensors = [{k: torch.from_numpy(v) for k, v in b._asdict().items()} for b in batches]
  for t in tensors:
    t["vision_index"], t["tile_places"] = t["vision_index"].long(), t["tile_places"].long()

  def run(steps=STEPS):
    for batch in tensors[:steps]:
      optimizer.zero_grad(set_to_none=True)
      loss = peer(batch)
      loss.backward()
      torch.nn.utils.clip_grad_norm_(peer.parameters(), o.clip_norm)
      optimizer.step()
    return loss.item()

  return run


def compare(name, rounds):
  """Median tokens/s of both, interleaved, after the first losses have been found equal."""
  model, config, flat, batches, mesh = prepare(name)
  sides = {"ours": ours(model, config, flat, batches, mesh), "torch": theirs(model, config, flat, batches)}
  first = {k: run(1) for k, run in sides.items()}
  assert abs(first["ours"] - first["torch"]) < 1e-3 * first["torch"], first
  tokens = sum(int((b.segment_ids > 0).sum()) for b in batches)
  rates = {k: [] for k in sides}
  for i in range(rounds + 2):
    for k in sorted(sides, reverse=bool(i % 2)):
      started = time.perf_counter()
      sides[k]()
      if i >= 2:  # warm
        rates[k].append(tokens / (time.perf_counter() - started))
  return rates


def main():
  rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 15
  torch.set_num_threads(machine.CORES)
  print(f"{machine.line()}, torch {torch.__version__}, float32, AdamW; {rounds} interleaved rounds of {STEPS} steps\n")
  print("| stage | ours, non-pad tokens/s (quartiles) | torch eager | ratio of medians |\n|---|---|---|---|")
  for name in ("text", "joint"):
    rates = compare(name, rounds)
    cell = {k: "{1:,.0f} ({0:,.0f}-{2:,.0f})".format(*np.quantile(v, (0.25, 0.5, 0.75))) for k, v in rates.items()}
    print(f"| {name} | {cell['ours']} | {cell['torch']} | {np.median(rates['ours']) / np.median(rates['torch']):.2f} |", flush=True)


if __name__ == "__main__":
  main()
