"""Losses in chunks on a mesh: equal to the plain ones on one device, and no more travels than for those."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bluelm_jax.kernels import chunked_losses
from bluelm_jax.kernels import chunked_top
from bluelm_jax.kernels.cross_entropy import token_log_probs
from bluelm_jax.models.decoder import logits
from bluelm_jax.sharding import rules
from bluelm_jax.training import losses
from bluelm_jax.training.precompile import hlo

B, S, D, E, V, K, CHUNKS = 8, 16, 32, 48, 2304, 5, 9
MESH = {"data": 2, "fsdp": 2, "tensor": 2}
AXES = {"x": ("batch", "sequence", None), "embedding": ("vocab", "embed"), "targets": ("batch", "sequence"),
        "teacher_x": ("batch", "sequence", None), "head": ("embed", "vocab"),
        "log_probs": ("batch", "sequence", None), "kept": ("batch", "sequence", None)}


def plain(x, embedding, targets):
  return -token_log_probs(logits(x, rules.gathered(embedding, AXES["embedding"]).T), targets)


def chunked(x, embedding, targets):
  return -chunked_losses.token_log_probs(x, rules.gathered(embedding, AXES["embedding"]).T, targets, losses.cut(CHUNKS))


def distilled(x, embedding, targets, teacher_x, head, chunks=CHUNKS):
  tables = rules.gathered(embedding, AXES["embedding"]).T, rules.gathered(head, AXES["head"])
  return sum(chunked_losses.distill(x, tables[0], targets, teacher_x, tables[1], 2.0, losses.cut(chunks)))


def stored(x, embedding, targets, log_probs, kept, chunks=CHUNKS):
  return sum(chunked_top.distill(x, rules.gathered(embedding, AXES["embedding"]).T, targets, log_probs, kept, 2.0, losses.cut(chunks)))


def arrays(names):
  rng = np.random.default_rng(0)
  shapes = {"x": (B, S, D), "embedding": (V, D), "teacher_x": (B, S, E), "head": (E, V)}
  made = {n: rng.normal(size=shape).astype(np.float32) for n, shape in shapes.items()} | {"targets": rng.integers(0, V, (B, S), np.int32)}
  made |= {"log_probs": np.log(rng.dirichlet(np.ones(K + 1), (B, S))).astype(np.float16), "kept": np.argsort(rng.random((B, S, V)))[..., :K].astype(np.uint16)}
  return [made[n] for n in names]


def run(loss, mesh):
  """(its value and gradients of x and embedding, the compiled program)."""
  names = [n for n in inspect.signature(loss).parameters if n in AXES]
  spec = lambda n: jax.sharding.NamedSharding(mesh, rules.spec(AXES[n], mesh.axis_names))
  placed = [jax.device_put(a, spec(n)) for n, a in zip(names, arrays(names))]
  with jax.set_mesh(mesh):
    step = jax.jit(jax.value_and_grad(lambda *a: jnp.mean(loss(*a)), (0, 1)), out_shardings=(None, (spec("x"), spec("embedding"))))
    program = step.lower(*placed).compile()
    return jax.device_get(program(*placed)), program


def moved(program) -> int:
  """Bytes of the results of a program's collectives, as often as they run."""
  return sum(c.size * c.trips for c in hlo.collectives(program.as_text()))


@pytest.mark.parametrize("loss,like", [(chunked, plain), (distilled, functools.partial(distilled, chunks=1)), (stored, functools.partial(stored, chunks=1))])
def test_no_more_travels_than_for_the_plain_form(loss, like):
  one = rules.make_mesh({"data": 1}, jax.devices()[:1])
  (found, program), (_, like_program), (expected, _) = run(loss, rules.make_mesh(MESH)), run(like, rules.make_mesh(MESH)), run(like, one)
  for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max())
  assert moved(program) <= 1.05 * moved(like_program)
  piece = D // 2 * V // 2 // CHUNKS * 4  # of a chunk of the table's gradient, float32
  assert any(c.size == piece and c.trips == CHUNKS for c in hlo.collectives(program.as_text()))
