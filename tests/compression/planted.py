"""A teacher in which a student is hidden among parts that carry nothing."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from bluelm_jax.compression import choose
from bluelm_jax.compression import importance
from bluelm_jax.compression import prune
from bluelm_jax.interop import load
from bluelm_jax.interop import mapping
from bluelm_jax.models import serialize
from bluelm_jax.models.config import DecoderConfig
from bluelm_jax.training import optimizer

STUDENT = DecoderConfig(
    vocab_size=40, num_layers=2, embed_dim=24, num_heads=4, num_kv_heads=2, head_dim=8, mlp_dim=32, context=64, dtype="float64", param_dtype="float64")
TEACHER = dataclasses.replace(STUDENT, num_layers=4, embed_dim=40, num_heads=6, num_kv_heads=3, mlp_dim=56)
VARIANTS = {"llama": {}, "qwen2": dict(qkv_bias=True, tie_embeddings=True, scan_layers=False), "qwen3": dict(qk_norm=True, norm_eps=1e-30)}


@dataclasses.dataclass
class Planted:
  """Flat parameters of a teacher, and where in it the student lies: rising indices, by layer where they differ."""

  params: dict
  layers: np.ndarray
  width: np.ndarray
  neurons: np.ndarray
  groups: np.ndarray


def plant(student, teacher, seed=0) -> Planted:
  """Random parameters; what is not the student's writes zeros: MLP neurons, values of KV groups, whole layers, channels."""
  rng = np.random.default_rng(seed)
  some = lambda n, k: np.sort(rng.permutation(n)[:k])
  by_layer = lambda n, k: np.stack([some(n, k) for _ in range(student.num_layers)])
  params = {p: 0.3 * rng.standard_normal(s) + ("scale" in p) for p, s in load.param_shapes(teacher).items()}
  found = Planted(
      params, some(teacher.num_layers, student.num_layers), some(teacher.embed_dim, student.embed_dim),
      by_layer(teacher.mlp_dim, student.mlp_dim), by_layer(teacher.num_kv_heads, student.num_kv_heads))
  others = lambda n, kept: np.setdiff1d(np.arange(n), kept)
  dead = others(teacher.embed_dim, found.width)
  params["embedding"][:, dead] = 0
  params["layers/attention/o"][..., dead] = 0
  params["layers/mlp/down"][..., dead] = 0
  for layer in others(teacher.num_layers, found.layers):
    params["layers/attention/o"][layer] = params["layers/mlp/down"][layer] = 0
  for i, layer in enumerate(found.layers):
    params["layers/mlp/up"][layer][:, others(teacher.mlp_dim, found.neurons[i])] = 0
    for name in ("v", "v_bias"):
      if f"layers/attention/{name}" in params:
        params[f"layers/attention/{name}"][layer][..., others(teacher.num_kv_heads, found.groups[i]), :] = 0
  return found


def _nested(config, flat):
  dtype = jnp.dtype(getattr(config, "decoder", config).param_dtype)
  return optimizer.merge({p: jnp.asarray(x, dtype) for p, x in flat.items()}, {})


def logits(config, flat, tokens, **images):
  return np.asarray(jax.jit(serialize.build(config).apply)({"params": _nested(config, flat)}, tokens, **images))


def rows(config, flat, tokens, segment_ids=None, **images):
  """(scores, tokens) of every row."""
  segment_ids = jnp.ones(tokens.shape, jnp.int32) if segment_ids is None else segment_ids
  forward = functools.partial(serialize.build(config).apply, tokens=tokens, segment_ids=segment_ids, **images)
  watch = jax.jit(lambda p: importance.watch(functools.partial(forward, {"params": p}), segment_ids)[1:])
  return jax.device_get(watch(_nested(config, flat)))


def measure(*arguments, **images):
  """Importance from one batch."""
  return importance.gather([rows(*arguments, **images)])


def pruned(flat, teacher, student, found):
  """(flat parameters of the student, what was kept)."""
  kept = choose.choose(found, *(getattr(c, "decoder", c) for c in (teacher, student)))
  tensors = prune.prune({p: mapping.in_memory(x) for p, x in flat.items()}, teacher, student, kept)
  values = {p: t.read() for p, t in tensors.items()}
  assert {p: v.shape for p, v in values.items()} == {p: t.shape for p, t in tensors.items()} == load.param_shapes(student)
  return values, kept


def tokens(shape=(4, 16), seed=0):
  return jnp.array(np.random.default_rng(seed).integers(0, 40, shape), jnp.int32)
