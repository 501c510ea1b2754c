"""The correctness grid: every blockwise backend against dense attention in float64, forward and backward."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bluelm_jax.kernels.attention import api
from bluelm_jax.kernels.attention import xla

BACKENDS = ("xla", "xla in blocks", "pallas_tpu")
LIMITS = {"float32": 1e-5, "bfloat16": 1e-2}


@pytest.fixture
def backend(request, monkeypatch):
  """An implementation's name; short rows, too, are cut into blocks where the parameter says so."""
  if request.param == "xla in blocks":
    monkeypatch.setattr(xla, "_WHOLE", 0)
    monkeypatch.setattr(xla, "_BLOCK", 64)
  return request.param.removesuffix(" in blocks")


def inputs(rng, B, Q, S, H, K, D, V):
  shapes = (B, Q, H, D), (B, S, K, D), (B, S, K, V), (B, Q, H, V), (B, Q, H)
  return [rng.standard_normal(shape) for shape in shapes]


def drawn_numbers(rng, B, Q, S, causal, segments):
  """Shuffled positions, and segment ids with padding, as a permuted packed row has them."""
  row = lambda n: np.stack([rng.permutation(n) for _ in range(B)])
  ids = lambda n: np.sort(rng.integers(0, 4, (B, n)), axis=1)[:, ::-1]
  found = {"q_positions": row(Q), "k_positions": row(S)} if causal else {}
  return found | ({"q_segment_ids": ids(Q), "k_segment_ids": ids(S)} if segments else {})


def outputs_and_gradients(arrays, numbers, implementation, **options):
  q, k, v, d_out, d_lse = arrays

  def loss(q, k, v):
    out, lse = api.attention(q, k, v, implementation=implementation, **numbers, **options)
    seen = jnp.isfinite(lse)
    return jnp.sum(out * d_out) + jnp.sum(jnp.where(seen, lse * d_lse, 0.0)), (out, jnp.where(seen, lse, -99.0))

  (_, outs), grads = jax.value_and_grad(loss, (0, 1, 2), has_aux=True)(q, k, v)
  return *outs, *grads


expected = jax.jit(functools.partial(outputs_and_gradients, implementation="reference"), static_argnames=("causal", "window"))  # for every backend


def computed(arrays, dtype, numbers, implementation, **options):
  """Compiled anew, as a backend may have been changed."""
  run = jax.jit(functools.partial(outputs_and_gradients, implementation=implementation, **options))
  return run([*(jnp.asarray(x, dtype) for x in arrays[:3]), *arrays[3:]], numbers)


def compare(arrays, implementation, dtype, numbers={}, **options):
  rounded = [np.asarray(jnp.asarray(x, dtype), np.float64) for x in arrays[:3]]  # what the backend was really given
  pairs = computed(arrays, dtype, numbers, implementation, **options), expected((*rounded, *arrays[3:]), numbers, **options)
  for name, a, b in zip(("out", "lse", "dq", "dk", "dv"), *pairs):
    a, b = np.asarray(a, np.float64), np.asarray(b)
    error = np.linalg.norm(a - b) / np.linalg.norm(b)
    assert error <= LIMITS[dtype], f"{name}: {error:.1e}"


SHAPES = (1, (200, 77)), (2, (128, 256)), (2, (13, 300)), (4, (200, 77))
GRID = [  # all in float32; in bfloat16, which changes casts alone, half, so that each pair of choices is met
    (causal, segments, K, lengths, dtype)
    for causal, segments, (i, (K, lengths)), dtype in itertools.product((True, False), (True, False), enumerate(SHAPES), LIMITS)
    if dtype == "float32" or (causal + segments + i) % 2]


@pytest.mark.parametrize("causal,segments,K,lengths,dtype", GRID)
@pytest.mark.parametrize("backend", BACKENDS, indirect=True)
def test_grid(float64, backend, causal, segments, K, lengths, dtype):
  rng = np.random.default_rng([causal, segments, K, *lengths])
  arrays = inputs(rng, 2, *lengths, 4, K, 64, 64)
  compare(arrays, backend, dtype, drawn_numbers(rng, 2, *lengths, causal, segments), causal=causal)


SIZES = [(name, 192, 128) for name in ("xla", "xla in blocks")] + [("pallas_tpu", *sizes) for sizes in ((64, 64), (72, 72), (80, 80), (128, 128), (192, 128))]


@pytest.mark.parametrize("backend,D,V", SIZES, indirect=["backend"])  # the kernels alone pad heads
def test_head_sizes(float64, backend, D, V):
  rng = np.random.default_rng(D)
  compare(inputs(rng, 1, 130, 130, 2, 1, D, V), backend, "float32", causal=True)


@pytest.mark.parametrize("window", [1, 20, 150])
@pytest.mark.parametrize("backend", BACKENDS, indirect=True)
def test_window(float64, backend, window):
  rng = np.random.default_rng(window)
  compare(inputs(rng, 1, 300, 300, 2, 2, 64, 64), backend, "float32", causal=True, window=window)


@pytest.mark.parametrize("backend", ("reference", *BACKENDS), indirect=True)
def test_a_query_that_sees_nothing(backend):
  """Zeros, a log-sum-exp of -inf, and no gradient; its neighbours are untouched."""
  rng = np.random.default_rng(0)
  q, k, v = (jnp.array(rng.standard_normal((1, 8, 2, 64)), jnp.float32) for _ in range(3))
  ids = jnp.array([[1, 1, 1, 1, 9, 9, 2, 2]])
  keys = jnp.array([[1, 1, 1, 1, 2, 2, 2, 2]])

  def total(*arrays):
    out, lse = api.attention(*arrays, causal=False, q_segment_ids=ids, k_segment_ids=keys, implementation=backend)
    return out.sum(), (out, lse)

  (_, (out, lse)), grads = jax.jit(jax.value_and_grad(total, (0, 1, 2), has_aux=True))(q, k, v)
  assert not out[:, 4:6].any() and jnp.isneginf(lse[:, 4:6]).all() and jnp.isfinite(lse[:, :4]).all() and out[:, 6:].all()
  assert all(jnp.isfinite(g).all() for g in grads) and not grads[0][:, 4:6].any()


def test_wrong_arguments_are_refused():
  x = lambda *shape, dtype=jnp.float32: jnp.zeros(shape, dtype)
  q, k = x(1, 8, 4, 16), x(1, 8, 2, 16)
  for words, arguments, options in [
      ("do not divide into 3", (q, x(1, 8, 3, 16), x(1, 8, 3, 16)), {}),
      ("do not fit", (q, k, x(1, 9, 2, 16)), {}),
      (r"takes \[B, S, heads, size\]", (q[0], k, k), {}),
      ("is unknown; use auto, reference", (q, k, k), {"implementation": "flash"}),
      ("need q_positions and k_positions", (q, x(1, 9, 2, 16), x(1, 9, 2, 16)), {}),
      (r"k_segment_ids \(1, 7\) must be \(1, 8\)", (q, k, k), {"q_segment_ids": x(1, 8), "k_segment_ids": x(1, 7)}),
      ("sliding window of 0", (q, k, k), {"window": 0}),
      ("scale -1.0 must be positive", (q, k, k), {"scale": -1.0}),
      ("takes float32 or bfloat16, q is float16", (x(1, 8, 4, 16, dtype=jnp.float16), k, k), {"implementation": "pallas_tpu"}),
  ]:
    with pytest.raises(ValueError, match=words):
      api.attention(*arguments, **options)


def test_auto_says_once_what_it_takes(caplog):
  api.log_choice.cache_clear()
  x = jnp.zeros((1, 8, 2, 16))
  with caplog.at_level("INFO", "bluelm_jax"):
    for _ in range(2):
      jax.eval_shape(lambda: api.attention(x, x, x))
  assert [r.message for r in caplog.records] == ["attention: xla (the cpu path)"]


def test_tpu_kernels_have_no_races():
  """Every transfer is waited for before its data is read, in each kernel (Mosaic's interpreter with its race detector)."""
  from jax._src.pallas.mosaic.interpret import interpret_pallas_call  # the only place that tells
  from jax.experimental.pallas import tpu as pltpu

  from bluelm_jax.kernels.attention import pallas_tpu

  rng = np.random.default_rng(0)
  arrays = inputs(rng, 1, 200, 300, 2, 1, 64, 64)
  pallas_tpu.interpret = pltpu.InterpretParams(detect_races=True, dma_execution_mode="on_wait", uninitialized_memory="nan")
  try:
    results = jax.block_until_ready(computed(arrays, jnp.float32, drawn_numbers(rng, 1, 200, 300, True, True), "pallas_tpu"))
    assert interpret_pallas_call.races is not None and not interpret_pallas_call.races.races_found
  finally:
    pallas_tpu.interpret = None
  assert all(np.isfinite(x).all() for x in results)
