"""The real train step of a stage, compiled for chips that are not here."""

import time
from typing import Any, Callable, NamedTuple

import jax
import jax.numpy as jnp

from bluelm_jax.data import pack
from bluelm_jax.data.batch import PackedBatch
from bluelm_jax.data.batch import Top
from bluelm_jax.data.tokenizer import ASSET
from bluelm_jax.data.tokenizer import Tokenizer
from bluelm_jax.models import serialize
from bluelm_jax.sharding import rules
from bluelm_jax.training import accumulate
from bluelm_jax.training import checks
from bluelm_jax.training import optimizer as optimizer_lib
from bluelm_jax.training import stage
from bluelm_jax.training import state as state_lib
from bluelm_jax.training import store
from bluelm_jax.training import teacher as teacher_lib


class Described(NamedTuple):
  """A train step and what it takes, nothing computed.

  Attributes:
    step: jitted; call or trace it with `arguments`, and `mesh` in context.
    state, batch: ShapeDtypeStructs with shardings.
    teacher: likewise, its parameters; None where a stage does not distil.
    sums: likewise of the gradients, where a stage adds up those of several batches: `step` adds one.
    update: jitted, where it does; makes an update of the state and the sums, and looks at norms where the stage watches them.
  """

  step: Callable
  state: state_lib.TrainState
  batch: PackedBatch
  spec: pack.PackSpec
  mesh: jax.sharding.Mesh
  teacher: Any
  sums: accumulate.Sums | None
  update: Callable | None

  @property
  def arguments(self):
    return (self.state, *([] if self.sums is None else [self.sums]), self.batch, self.teacher)


class Compiled(NamedTuple):
  """jax's compiled programs of a described step, of `update` where there is one, and the seconds it took to trace, lower and compile."""

  program: jax.stages.Compiled
  update: jax.stages.Compiled | None
  described: Described
  seconds: float


def describe(config, devices) -> Described:
  """The step that `stage.run` would run on these devices; reads no data and no weights."""
  checks.trains(config)
  model = serialize.build(stage.described_model(config))
  tokenizer = Tokenizer(config.tokenizer or ASSET)
  mesh = rules.make_mesh(config.mesh.to_dict(), devices)
  spec, _ = stage.batch_shape(config, model.config, mesh, tokenizer)
  tx = optimizer_lib.make_optimizer(config.optimizer, config.schedule, config.steps)
  _, shapes, shardings = stage.abstract_state(config, model, tx, mesh)
  place = lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s)
  state, batch = jax.tree.map(place, shapes, shardings), abstract_batch(spec, rules.batch_sharding(mesh))
  if config.distill.stored:
    batch = batch._replace(teacher=abstract_top(config, model.config, rules.batch_sharding(mesh)))
  teacher = teacher_lib.abstract(config, model.config, mesh)
  if accumulate.most(config.data.accumulate) == 1:
    return Described(stage.jit_step(config, model, tx, shardings), state, batch, spec, mesh, teacher, None, None)
  pieces = stage.gradient_shardings(config, model, tx, mesh)
  programs = accumulate.programs(config, model, tx, shardings, pieces)
  with jax.set_mesh(mesh):
    shapes = jax.eval_shape(programs.start, state, batch, teacher)
  replicated = jax.tree.map(lambda _: rules.replicated(mesh), shapes)
  sums = jax.tree.map(place, shapes, replicated._replace(gradients=pieces))
  return Described(programs.add, state, batch, spec, mesh, teacher, sums, programs.apply)


def compile_stage(config, devices) -> Compiled:
  """Compiles the step of a stage.

  Raises:
    jax.errors.JaxRuntimeError: RESOURCE_EXHAUSTED, when it does not fit.
  """
  d = describe(config, devices)
  start = time.perf_counter()
  with jax.set_mesh(d.mesh):
    program = d.step.lower(*d.arguments).compile()
    update = d.update and d.update.lower(d.state, d.sums).compile()
  return Compiled(program, update, d, time.perf_counter() - start)


def abstract_top(config, model_config, sharding=None) -> Top:
  """Shapes and dtypes of what a store gives to a batch."""
  vocabulary, k = getattr(model_config, "decoder", model_config).vocab_size, config.distill.top_k
  struct = lambda dtype, columns: jax.ShapeDtypeStruct((config.data.rows, config.data.length, columns), dtype, sharding=sharding)
  return Top(struct(jnp.float16, k + 1), struct(store.id_type(vocabulary), k))


def abstract_batch(spec: pack.PackSpec, sharding=None) -> PackedBatch:
  """Shapes and dtypes of a PackedBatch."""
  struct = lambda dtype, *shape: jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)
  row = lambda dtype=jnp.int32: struct(dtype, spec.rows, spec.length)
  return PackedBatch(
      tokens=row(), targets=row(), loss_weights=row(jnp.float32), segment_ids=row(), positions=row(), vision_index=row(), sources=row(),
      tiles=struct(jnp.uint8, spec.groups, spec.tile_slots, spec.tile_size, spec.tile_size, 3),
      tile_places=struct(jnp.int32, spec.groups, spec.tile_slots))
