"""A BlueLM that follows a BlueLM, both looking at the same tiles: on a mesh of eight as on one device."""

import dataclasses

import jax
import numpy as np
import optax
import pytest

from bluelm_jax.data.tokenizer import ASSET
from bluelm_jax.interop import load
from bluelm_jax.interop import mapping
from bluelm_jax.models import serialize
from bluelm_jax.sharding import rules
from bluelm_jax.training import stage
from bluelm_jax.training import state as state_lib
from bluelm_jax.training import teacher as teacher_lib
from bluelm_jax.training import teaching
from tests.sharding import step

MESH = {"fsdp": 4, "tensor": 2}


def student_config():
  model_config = step.model_config()
  return dataclasses.replace(model_config, decoder=dataclasses.replace(model_config.decoder, num_layers=1))


@pytest.fixture(scope="module")
def config(tmp_path_factory):
  """A stage with images whose teacher is wider than the student, with random weights."""
  directory, rng = tmp_path_factory.mktemp("teacher") / "t", np.random.default_rng(0)
  student = student_config()
  teacher = dataclasses.replace(student, decoder=dataclasses.replace(student.decoder, embed_dim=80, mlp_dim=48))
  tensors = {p: mapping.in_memory((rng.standard_normal(s) * 0.2 + ("scale" in p)).astype(np.float32)) for p, s in load.param_shapes(teacher).items()}
  load.save(directory, teacher, tensors, {"tokenizer.json": ASSET.read_bytes()})
  c = step.config()
  c.objective, c.distill.teacher, c.distill.temperature, c.distill.top_k, c.loss_chunks = "distill", str(directory), 2.0, 8, 3
  return c


def on(mesh, config, batch):
  """(parts of the loss, gradients by path) of one batch."""
  student, model = student_config(), serialize.build(student_config())
  teacher_lib.check(config, student, step.Tokenizer())
  create, _, shardings = stage.abstract_state(config, model, optax.identity(), mesh)
  start = jax.jit(create, out_shardings=shardings)(jax.random.key(0))
  teacher = teacher_lib.params(config, student, mesh)
  loss = state_lib.make_loss(model, len(config.data.sources), config.objective, config.loss_chunks, teacher_lib.distillation(config, student))
  with jax.set_mesh(mesh):
    step_fn = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (_, (counts, _)), gradients = step_fn(start.trainable, start.frozen, stage.put_batch(batch, rules.batch_sharding(mesh)), teacher)
  return {k: float(v) for k, v in counts.items() if k.startswith("loss_parts")}, jax.device_get(gradients)


def test_a_step_with_images_equals_that_of_one_device(config):
  mesh, one = rules.make_mesh(MESH), rules.make_mesh({"data": 1}, jax.devices()[:1])
  batch = step.batch_for(mesh)
  (parts, gradients), (parts_1, gradients_1) = (on(m, config, batch) for m in (mesh, one))
  assert parts == pytest.approx(parts_1, rel=1e-4) and all(v > 0 for v in parts.values())
  assert any("vision" in p for p in gradients) and gradients.keys() == gradients_1.keys()
  for path, expected in gradients_1.items():
    np.testing.assert_allclose(gradients[path], expected, atol=2e-3 * np.abs(expected).max() + 1e-5, err_msg=path)

  top = teaching.jit_top(config, teacher_lib.described(config, student_config()), one)
  with jax.set_mesh(one):  # the teacher looks at the screens
    teacher = teacher_lib.params(config, student_config(), one)
    said, blank = (jax.device_get(top(teacher, b)[0].log_probs) for b in (batch, batch._replace(tiles=np.zeros_like(batch.tiles))))
  seen = (batch.loss_weights > 0) & (np.cumsum(batch.vision_index >= 0, 1) > 0)
  assert np.abs(said - blank)[seen].mean() > 0.01
