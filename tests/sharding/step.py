"""One train step of a two-layer model on a packed multimodal batch, on any mesh; also across processes.

  python -m tests.sharding.step PROCESSES INDEX PORT '[[MESH, LAYOUT], ...]' FOLDER     # gets 0.npz, 1.npz, ...
"""

import dataclasses
import functools
import json
import pathlib
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from bluelm_jax.data import loader
from bluelm_jax.data.tokenizer import Tokenizer
from bluelm_jax.models import presets
from bluelm_jax.models import serialize
from bluelm_jax.sharding import rules
from bluelm_jax.training import defaults
from bluelm_jax.training import optimizer as optimizer_lib
from bluelm_jax.training import stage
from bluelm_jax.training import state

ROOT = pathlib.Path(__file__).parents[2]


def config():
  """A joint batch in one row group per data rank."""
  c = defaults.load(f"{ROOT}/configs/stages/joint.py:miniature")
  c.data.update(rows=8, length=256, tile_slots=8)
  return c


def model_config():
  """float32, with heads that divide over two tensor ranks."""
  small = presets.miniature()
  return dataclasses.replace(
      small, vision=dataclasses.replace(small.vision, embed_dim=64, num_heads=2, mlp_dim=64, num_layers=1),
      decoder=dataclasses.replace(small.decoder, num_layers=2, embed_dim=64, mlp_dim=96))


def batch_for(mesh):
  spec, chat = stage.batch_shape(config(), model_config(), mesh, Tokenizer())
  return next(loader.batches(config().data.sources, chat, spec, 0))


def run(mesh, batch, layout: str = "none"):
  """(metrics, gradients by path, the PartitionSpecs found) of the trainer's own step."""
  model = serialize.build(model_config())
  init = functools.partial(model.init, method="init_all")
  boxed = jax.eval_shape(init, jax.random.key(0), jnp.zeros((1, 8), jnp.int32))["params"]
  shardings = rules.param_shardings(mesh, boxed)
  params = jax.jit(lambda k: nn.meta.unbox(init(k, jnp.zeros((1, 8), jnp.int32))["params"]), out_shardings=shardings)(jax.random.key(0))
  flat, tx = optimizer_lib.paths(params), optax.sgd(1.0)  # the update is the gradient
  before = state.TrainState(jnp.int32(0), flat, {}, tx.init(flat))
  with jax.set_mesh(mesh):
    after, metrics = jax.jit(state.make_train_step(model, tx, len(config().data.sources), layout=layout))(before, stage.put_batch(batch, rules.batch_sharding(mesh)))
    specs = {str(v.sharding.spec) for v in after.trainable.values()}
    gather = jax.jit(lambda tree: tree, out_shardings=rules.replicated(mesh))
    whole = lambda tree: jax.tree.map(lambda x: np.asarray(x.addressable_data(0)), gather(tree))
    start, end = whole(before.trainable), whole(after.trainable)
  return jax.tree.map(lambda x: x.tolist(), whole(metrics)), {p: start[p] - end[p] for p in start}, specs


def main(processes, index, port, steps, folder):
  jax.config.update("jax_num_cpu_devices", 8 // int(processes))
  jax.distributed.initialize(coordinator_address=f"127.0.0.1:{port}", num_processes=int(processes), process_id=int(index))
  for number, (shape, layout) in enumerate(json.loads(steps)):
    mesh = rules.make_mesh(shape)
    assert mesh.size == 8
    metrics, gradients, _ = run(mesh, batch_for(mesh), layout)
    if index == "0":
      np.savez(f"{folder}/{number}.npz", loss=metrics["loss"], **{p.replace("/", "."): g for p, g in gradients.items()})


if __name__ == "__main__":
  main(*sys.argv[1:])
