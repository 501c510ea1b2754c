"""Sizes of the presets, and that every parameter can be sharded."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bluelm_jax.interop import load
from bluelm_jax.models import presets
from bluelm_jax.models import serialize
from bluelm_jax.models.config import BlueLMConfig
from bluelm_jax.models.config import VisionConfig
from bluelm_jax.sharding import rules


def count(config) -> int:
  return sum(int(np.prod(s)) for s in load.param_shapes(config).values())


@pytest.mark.parametrize("name,expected", [("siglip2_so400m", 412_987_248), ("bluelm_2_5_3b", 2_900_249_968), ("bluelm_7b_teacher", 7_799_574_528)])
def test_parameter_counts(name, expected):
  assert count(presets.PRESETS[name]()) == expected


def test_small_presets_are_small():
  assert count(presets.miniature()) < 2_000_000
  assert count(presets.miniature_teacher()) < 3_000_000
  assert 70e6 < count(presets.small()) < 130e6


def test_the_student_is_a_sub_selection_of_the_teacher():
  student, teacher = presets.bluelm_2_5_3b().decoder, presets.bluelm_7b_teacher()
  assert (student.vocab_size, student.num_layers, student.head_dim) == (teacher.vocab_size, teacher.num_layers, teacher.head_dim)
  for width in ("embed_dim", "num_heads", "num_kv_heads", "mlp_dim"):
    assert getattr(student, width) < getattr(teacher, width)


def test_visual_tokens_of_a_tile():
  config = presets.bluelm_2_5_3b()
  assert config.tokens_per_tile == 196 and config.vision.grid == 27
  assert config.anyres.tile_size * config.anyres.max_rows == 1512


def boxed_params(config):
  model = serialize.build(config)
  if isinstance(config, VisionConfig):
    return jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, config.image_size, config.image_size, 3)))["params"]
  init = functools.partial(model.init, method="init_all") if isinstance(config, BlueLMConfig) else model.init
  return jax.eval_shape(init, jax.random.key(0), jnp.zeros((1, 8), jnp.int32))["params"]


@pytest.mark.parametrize("name", sorted(presets.PRESETS))
def test_every_parameter_names_known_axes(name):
  known = set(rules.RULES)
  leaves = jax.tree.leaves(boxed_params(presets.PRESETS[name]()), is_leaf=lambda v: isinstance(v, nn.Partitioned))
  for leaf in leaves:
    assert isinstance(leaf, nn.Partitioned), "a parameter without logical axes"
    assert len(leaf.names) == leaf.value.ndim and set(leaf.names) <= known


@pytest.mark.parametrize("name", ["bluelm_2_5_3b", "bluelm_7b_teacher"])
def test_large_presets_split_over_eight_devices(name):
  """fsdp 2 x tensor 4: the largest shard holds an eighth of nearly everything."""
  mesh = rules.make_mesh({"fsdp": 2, "tensor": 4})
  boxed = boxed_params(presets.PRESETS[name]())
  shardings = jax.tree.leaves(rules.param_shardings(mesh, boxed))
  shapes = [leaf.shape for leaf in jax.tree.leaves(nn.meta.unbox(boxed))]
  total, local = (sum(int(np.prod(s)) for s in x) for x in (shapes, [h.shard_shape(s) for h, s in zip(shardings, shapes)]))
  assert local < 1.02 * total / 8
