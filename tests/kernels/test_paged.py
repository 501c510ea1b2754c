"""Attention to pages: every implementation against a dense softmax in float64, and against JAX's own reference.

Shapes as in kernels/paged/api.py.
"""

import functools

import jax
from jax.experimental.pallas import tpu as pltpu
from jax.experimental.pallas.ops.tpu import ragged_paged_attention as jax_own
import jax.numpy as jnp
import numpy as np
import pytest

from bluelm_jax.kernels.attention import api as attention_api
from bluelm_jax.kernels.paged import api
from bluelm_jax.kernels.paged import pallas_tpu
from bluelm_jax.kernels.paged import pallas_triton
from bluelm_jax.kernels.paged import quantize
from bluelm_jax.sharding import attend
from bluelm_jax.sharding import rules

IMPLEMENTATIONS = ("xla", "pallas_tpu", "pallas_triton")
LIMITS = {"float32": 1e-5, "bfloat16": 1e-2}


@pytest.fixture
def small_blocks(monkeypatch):
  """Several blocks in short rows, keys split over two programs, and queries over several."""
  monkeypatch.setattr(pallas_tpu, "_BLOCK", 64)
  monkeypatch.setattr(pallas_triton, "_SIZES", {256: pallas_triton.Sizes(16, 32, 4, 1)})
  monkeypatch.setattr(attention_api, "target_processors", lambda: 8)


def inputs(rng, R, Q, K, G, P, M, D, width=128, dtype="float32", int8=False):
  """(arrays, keywords) of api.attention: rows of random lengths, one without queries, one whose last queries are not there.

  Pages are of head size `width`, which is at least D.
  """
  X = R * M + 1
  q, k, v = (rng.standard_normal(shape) for shape in ((R, Q, K * G, D), (X, K, P, width), (X, K, P, width)))
  tables = rng.permutation(X)[: R * M].reshape(R, M)
  positions = rng.integers(0, M * P - Q + 1, (R, 1)) + np.arange(Q)
  tables[R // 2 :], positions[R // 2] = tables[0], rng.integers(0, M * P - Q + 1) + np.arange(Q)  # pieces of one prompt
  positions[-1] = -1
  positions[0, 1 + Q // 2 :] = -1
  q, k, v = (jnp.asarray(x, dtype) for x in (q, k, v))
  scales = {}
  if int8:
    (k, scales["k_scale"]), (v, scales["v_scale"]) = quantize.quantize(k), quantize.quantize(v)
  return (q, k, v, jnp.asarray(tables, jnp.int32), jnp.asarray(positions, jnp.int32)), scales


def dense(arrays, scales, scale):
  """A softmax for each row and head, in float64."""
  q, k, v, tables, positions = (np.asarray(x, np.float64 if x.ndim == 4 else None) for x in arrays)
  if scales:
    k, v = k * np.asarray(scales["k_scale"])[..., None], v * np.asarray(scales["v_scale"])[..., None]
  out, G = np.zeros(q.shape), q.shape[2] // k.shape[1]
  for r, n, h in np.ndindex(q.shape[:3]):
    own = lambda pages: pages[tables[r], h // G].reshape(-1, pages.shape[3])[: positions[r, n] + 1, : q.shape[3]]
    if positions[r, n] >= 0:
      s = own(k) @ q[r, n, h] * scale
      p = np.exp(s - s.max())
      out[r, n, h] = p / p.sum() @ own(v)
  return out


def compare(implementation, arrays, scales, limit, scale):
  out = jax.jit(lambda arrays, scales: api.attention(*arrays, **scales, scale=scale, implementation=implementation))(arrays, scales)
  assert out.dtype == arrays[0].dtype
  expected = dense(arrays, scales, scale)
  assert np.linalg.norm(np.asarray(out, np.float64) - expected) <= limit * np.linalg.norm(expected)
  assert not np.asarray(out)[np.asarray(arrays[4]) < 0].any()


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_drawn_at_random(implementation, seed, small_blocks):
  rng = np.random.default_rng(seed)
  draw = lambda *choices: choices[rng.integers(len(choices))]
  dtype, int8 = ("float32", "bfloat16")[seed % 2], seed % 4 > 1
  P, D = 32 if int8 else draw(16, 32, 48), draw(64, 80, 96, 128)
  arrays, scales = inputs(
      rng, R=draw(2, 5), Q=draw(1, 1, 3, 17), K=draw(1, 2, 3), G=draw(1, 2, 4), P=P, M=draw(1, 3, 6), D=D,
      width=128 if implementation == "pallas_tpu" else draw(D, 128), dtype=dtype, int8=int8)
  compare(implementation, arrays, scales, LIMITS[dtype], scale=draw(0.05, 0.3))


def test_tpu_copies_have_no_races(monkeypatch, small_blocks):
  """Every page is waited for before it is read, and what was never copied is never seen (Mosaic's interpreter, its race detector)."""
  from jax._src.pallas.mosaic.interpret import interpret_pallas_call  # the only place that tells

  monkeypatch.setattr(pallas_tpu, "interpret", pltpu.InterpretParams(detect_races=True, dma_execution_mode="on_wait", uninitialized_memory="nan"))
  for int8 in (False, True):
    monkeypatch.setattr(pallas_tpu, "_cores", lambda kv_heads: 1 + int8)
    (*arrays, positions), scales = inputs(np.random.default_rng(int8), R=4, Q=2, K=2, G=2, P=32, M=3, D=64, int8=int8)
    positions = positions.at[0].set(jnp.array([3, 4]))  # the first block of all is copied in part
    compare("pallas_tpu", (*arrays, positions), scales, 1e-5, 0.1)
    assert interpret_pallas_call.races is not None and not interpret_pallas_call.races.races_found


def test_equals_jax_own_reference(small_blocks):
  (q, k, v, tables, _), _ = inputs(np.random.default_rng(0), R=3, Q=5, K=2, G=2, P=16, M=4, D=128)
  lengths, counts = np.array([40, 5, 64]), np.array([5, 5, 1])  # the last row decodes
  positions = np.array([[n - c + i if i < c else -1 for i in range(5)] for n, c in zip(lengths, counts)])
  pages = jnp.stack([k, v], 2).reshape(k.shape[0], 4, *k.shape[2:]).swapaxes(1, 2)  # heads of keys and values in turn
  numbers = lengths.astype(np.int32), np.asarray(tables), np.array([0, *counts.cumsum()], np.int32), np.array([3], np.int32)
  expected = jax.jit(lambda q, pages: jax_own.kernel.ref_ragged_paged_attention(q, pages, *numbers, sm_scale=0.2))(q[positions >= 0], pages)
  for implementation in IMPLEMENTATIONS:
    run = jax.jit(functools.partial(api.attention, scale=0.2, implementation=implementation))
    out = run(q, k, v, tables, jnp.asarray(positions, jnp.int32))
    np.testing.assert_allclose(out[positions >= 0], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("implementation", ("xla", "pallas_triton"))
def test_heads_over_tensor_ranks_equal_one_device(implementation, small_blocks):
  arrays, scales = inputs(np.random.default_rng(0), R=3, Q=2, K=4, G=2, P=32, M=3, D=64, int8=implementation == "pallas_triton")
  run = jax.jit(lambda arrays, scales: attend.paged_attention(*arrays, **scales, implementation=implementation))
  expected = run(arrays, scales)
  with jax.set_mesh(rules.make_mesh({"data": 2, "tensor": 4})):
    out = run(arrays, scales)
    assert out.sharding.spec == jax.P(None, None, "tensor")
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-6)
  with jax.set_mesh(rules.make_mesh({"tensor": 8})), pytest.raises(ValueError, match="4 key-value heads do not divide over 8 tensor ranks; lower mesh.tensor"):
    run(arrays, scales)


def test_eight_bits_lose_half_a_step():
  x = jnp.asarray(np.random.default_rng(0).standard_normal((5, 3, 64)), jnp.bfloat16).at[2].set(0)
  numbers, scale = quantize.quantize(x)
  assert (numbers.dtype, numbers.shape, scale.dtype, scale.shape) == (jnp.int8, x.shape, jnp.float32, x.shape[:2])
  back, x = np.asarray(numbers, np.float64) * np.asarray(scale)[..., None], np.asarray(x, np.float64)
  assert (np.abs(back - x) <= np.abs(x).max(-1, keepdims=True) / 254 * 1.001).all() and not scale[2].any()
  assert np.abs(numbers).max(-1)[[0, 1, 3, 4]].min() == 127


def test_what_is_refused():
  (q, k, v, tables, positions), _ = inputs(np.random.default_rng(0), R=2, Q=1, K=2, G=2, P=8, M=2, D=64)
  (numbers, scale), half = quantize.quantize(k), jnp.bfloat16
  scales = {"k_scale": scale, "v_scale": scale}
  wide = jnp.zeros((2, 1, 2, 300)), *[jnp.zeros((5, 1, 16, 300))] * 2
  for words, arrays, options in [
      (r"pages are \[X, K, P, D\], heads a multiple of K", (q[:, :, :3], k, v), {}),
      ("paged attention 'flash' is unknown; use auto, xla", (q, k, v), {"implementation": "flash"}),
      ("scale -1 must be positive", (q, k, v), {"scale": -1}),
      ("keep pages in bfloat16, or in int8 with scales", (q.astype(half), k, v), {}),
      ("k_scale goes with int8 pages, and these are float32", (q, k, v), scales),
      ("v_scale goes with int8 pages", (q, numbers, numbers), {"k_scale": scale}),
      (r"k_scale is float32 \(4, 2, 8\); it must be float32 \(5, 2, 8\)", (q, numbers, numbers), scales | {"k_scale": scale[1:]}),
      ("pallas_tpu takes float32 or bfloat16, q is float16", (x.astype(jnp.float16) for x in (q, k, v)), {"implementation": "pallas_tpu"}),
      ("bfloat16 pages of a multiple of 16 slots, not 8", (x.astype(half) for x in (q, k, v)), {"implementation": "pallas_tpu"}),
      ("a multiple of 128, not 64; make pages wider", (x[..., :64] for x in (q, k, v)), {"implementation": "pallas_tpu"}),
      ("head size 300 is above 256; use implementation='xla'", wide, {"implementation": "pallas_triton"}),
  ]:
    with pytest.raises(ValueError, match=words):
      api.attention(*arrays, tables, positions, **options)
  with pytest.raises(ValueError, match=r"tables \(1, 2\) and positions \(2, 1\) do not fit 2 rows of 1 queries"):
    api.attention(q, k, v, tables[:1], positions)
  big, lines = jax.ShapeDtypeStruct((2**20, 2, 16, 128), jnp.int8), jax.ShapeDtypeStruct((2**20, 2, 16), jnp.float32)
  with pytest.raises(ValueError, match="cannot be addressed; make them fewer than"):
    run = lambda pages, lines: api.attention(q, pages, pages, tables, positions, k_scale=lines, v_scale=lines, implementation="pallas_triton")
    jax.eval_shape(run, big, lines)
  with pytest.raises(ValueError, match="too many for pallas_tpu; use larger pages or fewer rows"):
    api.attention(q, k, v, jnp.zeros((2, 10**5), jnp.int32), positions, implementation="pallas_tpu")


def test_auto_takes_the_platforms_kernel_and_says_so_once(monkeypatch, caplog):
  (q, k, v, tables, positions), _ = inputs(np.random.default_rng(0), R=2, Q=1, K=1, G=1, P=8, M=1, D=64)
  attention_api.log_choice.cache_clear()
  with caplog.at_level("INFO", "bluelm_jax"):
    for _ in range(2):
      jax.eval_shape(lambda: api.attention(q, k, v, tables, positions))
  assert [r.message for r in caplog.records] == ["paged attention: xla (the cpu path)"]
  for platform, dtype, name in [("tpu", "float32", "pallas_tpu"), ("tpu", "bfloat16", "xla"), ("gpu", "bfloat16", "pallas_triton"), ("gpu", "int32", "xla")]:
    monkeypatch.setattr(attention_api, "target_platform", lambda: platform)
    assert api.choose("auto", q.astype(dtype), k.astype(dtype), tables) == name
