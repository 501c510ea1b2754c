"""One train step of a two-layer model on a packed multimodal batch, on any mesh; also across processes.

  python -m tests.sharding.step PROCESSES INDEX PORT '[[MESH, LAYOUT], ...]' FOLDER     # gets 0.npz, 1.npz, ...
"""

import dataclasses
import json
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax

from bluelm_jax.data import loader
from bluelm_jax.data.tokenizer import Tokenizer
from bluelm_jax.interop import load
from bluelm_jax.models import presets
from bluelm_jax.models import serialize
from bluelm_jax.sharding import rules
from bluelm_jax.training import defaults
from bluelm_jax.training import optimizer as optimizer_lib
from bluelm_jax.training import stage
from bluelm_jax.training import state
from tests import hurry  # noqa: F401  (for processes of its own, too)

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


def init(model, key):
  """Boxed parameters."""
  return model.init(key, jnp.zeros((1, 8), jnp.int32), method="init_all")["params"]


def drawn(path, shape):
  """Much as a model begins; the same values in every process, for which nothing is compiled."""
  if path.endswith(("scale", "bias")):
    return np.full(shape, path.endswith("scale"), np.float32)
  return (0.1 * np.random.default_rng(list(path.encode())).standard_normal(shape)).astype(np.float32)


def run(mesh, batch, layout: str = "none"):
  """(metrics, gradients by path, the PartitionSpecs found) of the trainer's own step."""
  model = serialize.build(model_config())
  shardings = optimizer_lib.paths(rules.param_shardings(mesh, load.abstract_params(model_config())))
  host = {p: drawn(p, shape) for p, shape in load.param_shapes(model_config()).items()}
  flat = {p: jax.make_array_from_callback(x.shape, shardings[p], lambda i, x=x: x[i]) for p, x in host.items()}
  tx = optax.sgd(1.0)  # the update is the gradient
  before = state.TrainState(jnp.int32(0), flat, {}, tx.init(flat))
  with jax.set_mesh(mesh):
    after, metrics = jax.jit(state.make_train_step(model, tx, len(config().data.sources), layout=layout))(before, stage.put_batch(batch, rules.batch_sharding(mesh)))
    specs = {str(v.sharding.spec) for v in after.trainable.values()}
    gather = jax.jit(lambda tree: tree, out_shardings=rules.replicated(mesh))
    whole = lambda tree: jax.tree.map(lambda x: np.asarray(x.addressable_data(0)), gather(tree))
    end = whole(after.trainable)
  return jax.tree.map(lambda x: x.tolist(), whole(metrics)), {p: host[p] - end[p] for p in host}, specs


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
