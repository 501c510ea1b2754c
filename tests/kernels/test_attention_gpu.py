"""The GPU kernels, interpreted on CPU, against the reference in float64.

Shapes: B batch, Q queries, S keys, H heads, K key-value heads, D head size, V head size of values.
"""

import functools
import threading

import jax
from jax.experimental.pallas import mosaic_gpu as plgpu
import jax.numpy as jnp
import numpy as np
import pytest

from bluelm_jax.kernels.attention import api
from bluelm_jax.kernels.attention import masks
from bluelm_jax.kernels.attention import pallas_gpu
from bluelm_jax.kernels.attention import pallas_triton
from bluelm_jax.kernels.attention import reference

_TOLERANCE = {jnp.float32: 1e-5, jnp.bfloat16: 1e-2, jnp.float16: 1e-2}


def _inputs(B, Q, S, H, K, D, V, dtype):
  rng = np.random.default_rng(0)
  shapes = (B, Q, H, D), (B, S, K, D), (B, S, K, V), (B, Q, H, V), (B, Q, H)
  *arrays, d_lse = (rng.standard_normal(shape) for shape in shapes)
  return *(jnp.asarray(x, dtype) for x in arrays), jnp.asarray(d_lse, jnp.float32)


def _mask(B, Q, S, causal, packed, window=None, shuffled=False):
  rng = np.random.default_rng(1)
  def positions(n):
    x = np.tile(np.arange(n), (B, 1))
    return jnp.asarray(rng.permuted(x, axis=1) if shuffled else x)
  ids = lambda n: jnp.asarray(np.sort(rng.integers(0, 4, (B, n)), axis=1)) if packed else None
  return masks.make(positions(Q), positions(S), ids(Q), ids(S), causal=causal, window=window)


def _expected(q, k, v, d_out, d_lse, mask, scale):
  """(out, lse, dq, dk, dv) in float64."""
  @jax.jit
  def run(q, k, v, d_out, d_lse, mask):
    (out, lse), pull = jax.vjp(lambda *x: reference.attention(*x, mask, scale), q, k, v)
    return out, lse, *pull((d_out, jnp.where(jnp.isneginf(lse), 0.0, d_lse)))

  with jax.enable_x64(True):
    return [np.asarray(x) for x in run(*(jnp.asarray(x, jnp.float64) for x in (q, k, v, d_out, d_lse)), mask)]


def _actual(module, q, k, v, d_out, d_lse, mask, scale):
  out, lse = jax.jit(module.forward, static_argnums=4)(q, k, v, mask, scale)
  delta = api.delta(out, d_out, jnp.where(jnp.isneginf(lse), 0.0, d_lse))
  return out, lse, *jax.jit(module.backward, static_argnums=4)(q, k, v, mask, scale, api.finite(lse), delta, d_out)


def _check(module, shape, dtype, mask):
  arrays, scale = _inputs(*shape, dtype), 0.2
  expected, actual = (run(*arrays, mask, scale) for run in (_expected, functools.partial(_actual, module)))
  assert [x.dtype for x in actual] == [dtype, jnp.float32, dtype, dtype, dtype]
  np.testing.assert_array_equal(np.isneginf(actual[1]), np.isneginf(expected[1]))
  for name, a, e in zip(("out", "lse", "dq", "dk", "dv"), actual, expected):
    a, e = (np.where(np.isneginf(x), 0.0, np.asarray(x, np.float64)) for x in (a, e))
    assert np.linalg.norm(a - e) <= _TOLERANCE[dtype] * np.linalg.norm(e), name


@pytest.mark.parametrize(
    "dtype, shape, causal, packed, window, shuffled",
    [  # shapes are (B, Q, S, H, K, D, V)
        (jnp.float32, (2, 64, 64, 2, 2, 16, 16), False, False, None, False),
        (jnp.float32, (1, 50, 75, 2, 1, 24, 16), False, False, None, False),
        (jnp.float32, (1, 70, 70, 4, 2, 16, 16), True, False, None, False),
        (jnp.float32, (2, 90, 61, 2, 2, 16, 40), False, True, None, False),
        (jnp.float32, (2, 90, 90, 6, 2, 24, 16), True, True, 9, True),
        (jnp.bfloat16, (1, 64, 96, 2, 1, 16, 16), True, False, 20, False),
        (jnp.bfloat16, (2, 100, 100, 4, 1, 72, 72), True, True, None, False),
        (jnp.float16, (1, 40, 100, 2, 2, 32, 16), False, True, None, False),
    ])
def test_triton(dtype, shape, causal, packed, window, shuffled, monkeypatch):
  small = pallas_triton.Sizes(32, 32, 4, 1)  # several blocks in short rows
  monkeypatch.setattr(pallas_triton, "_SIZES", {name: {128: small} for name in pallas_triton._SIZES})
  _check(pallas_triton, shape, dtype, _mask(*shape[:3], causal, packed, window, shuffled))


def test_triton_through_the_attention_call():
  q, k, v, *_ = _inputs(1, 48, 48, 2, 1, 16, 16, jnp.float32)
  loss = lambda name: lambda *x: sum(jnp.sum(y * y) for y in api.attention(*x, implementation=name))
  losses = loss("pallas_triton"), loss("reference")
  for a, e in zip(*(jax.jit(jax.grad(loss, (0, 1, 2)))(q, k, v) for loss in losses)):
    np.testing.assert_allclose(a, e, rtol=1e-4, atol=1e-4)


def test_hopper_kernels_and_their_barriers(monkeypatch):
  """All but the matrix products, which the interpreter lacks: copies, rings, barriers (with race detection), masks."""
  params = pytest.importorskip("jax._src.pallas.mosaic_gpu.interpret.params", reason="this JAX cannot interpret Mosaic GPU")
  races = pytest.importorskip("jax._src.pallas.mosaic_gpu.interpret.interpret_pallas_call").get_races
  _products_in_numpy(monkeypatch)
  _compile_once(monkeypatch)
  monkeypatch.setattr(pallas_gpu, "_flawed_assembler", lambda: None)
  monkeypatch.setattr(pallas_gpu, "interpret", params.InterpretGPUParams(detect_races=True))
  monkeypatch.setattr(pallas_gpu, "_SIZES", {name: {64: pallas_gpu.Sizes(32, 2)} for name in pallas_gpu._SIZES})  # rings go round
  monkeypatch.setattr(api, "target_processors", lambda: 3)  # four tiles: the last round is for one
  shape = 1, 160, 96, 2, 1, 64, 32
  _check(pallas_gpu, shape, jnp.bfloat16, _mask(*shape[:3], True, True, 60))
  shape = 1, 160, 64, 1, 1, 64, 32
  ids = jnp.asarray(np.r_[np.full(128, 1), np.full(32, 3)])[None], jnp.ones((1, 64), jnp.int32)
  _check(pallas_gpu, shape, jnp.bfloat16, masks.make(None, None, *ids, causal=False))  # whole blocks, and a tile that sees nothing
  assert not races().races_found


def _compile_once(monkeypatch):
  """The interpreter would compile a kernel anew for every warpgroup of every program, which is most of its time."""
  thread_map = pytest.importorskip("jax._src.pallas.mosaic.interpret.thread_map", reason="this JAX interprets in another way")
  if not hasattr(thread_map, "_run_jaxpr"):
    return

  compiled, lock = {}, threading.Lock()

  def run(jaxpr, consts, *args):
    with lock:
      if jaxpr not in compiled:
        compiled[jaxpr] = jax.jit(lambda consts, *args: jax.core.eval_jaxpr(jaxpr, consts, *args) and None).lower(consts, *args).compile()
    compiled[jaxpr](consts, *args)

  monkeypatch.setattr(thread_map, "_run_jaxpr", run)


def _products_in_numpy(monkeypatch):
  class Transposed:
    def __init__(self, ref, _):
      self.ref = ref

    def __getitem__(self, _):
      return self.ref[...].T

  value = lambda x: x if isinstance(x, jax.Array) else x[...]
  product = lambda a, b: jnp.matmul(value(a), value(b), preferred_element_type=jnp.float32)

  def in_flight(terms, use):
    return use(*(lambda total=total, a=a, b=b: (0 if isinstance(total, int) else total) + product(a, b) for total, a, b in terms))

  monkeypatch.setattr(plgpu, "transpose_ref", Transposed)
  monkeypatch.setattr(plgpu, "load", lambda ref, index, layout: ref[index])
  monkeypatch.setattr(plgpu, "layout_cast", lambda x, layout: x)
  monkeypatch.setattr(pallas_gpu, "_in_flight", in_flight)


def test_what_kernels_refuse(monkeypatch):
  q, k, v, *_ = _inputs(1, 8, 8, 2, 1, 16, 16, jnp.float32)
  mask = _mask(1, 8, 8, True, False)
  with pytest.raises(ValueError, match="use implementation='xla'"):
    pallas_triton.forward(q.astype(jnp.bfloat16), k, v, mask, 1.0)
  wide = jnp.zeros((1, 8, 2, 300))
  with pytest.raises(ValueError, match="head sizes 300 and 300 are above 256; use implementation='xla'"):
    pallas_triton.forward(wide, wide, wide, mask, 1.0)
  with pytest.raises(ValueError, match="use implementation='pallas_triton' or 'xla' on CPU"):
    pallas_gpu.forward(q, k, v, mask, 1.0)
  monkeypatch.setattr(pallas_gpu, "interpret", False)  # as on a GPU
  with pytest.raises(ValueError, match="cast all to bfloat16 or float16"):
    pallas_gpu.forward(q, k, v, mask, 1.0)
  with pytest.raises(ValueError, match="above 192 and 128"):
    pallas_gpu.forward(*[wide.astype(jnp.bfloat16)] * 3, mask, 1.0)


def test_choice(monkeypatch):
  monkeypatch.setattr(pallas_gpu, "_flawed_assembler", lambda: None)
  choose = lambda kind, dtype=jnp.bfloat16, Q=128, D=64: _choice(monkeypatch, kind, dtype, Q, D)
  for kind in ("NVIDIA H100 80GB HBM3", "NVIDIA H200", "NVIDIA GH200 480GB"):
    assert choose(kind) == "pallas_gpu"
  for kind in ("NVIDIA A100-SXM4-80GB", "NVIDIA B200", "NVIDIA L40S"):
    assert choose(kind) == "pallas_triton"
  for unfit in ({"dtype": jnp.float32}, {"D": 256}, {"Q": 1}):
    assert choose("NVIDIA H100 PCIe", **unfit) == "pallas_triton"
  assert choose("NVIDIA A100-SXM4-80GB", D=512) == "xla"
  monkeypatch.setattr(pallas_gpu, "_flawed_assembler", lambda: "12.8.93")
  assert choose("NVIDIA H100 PCIe") == "pallas_triton"


def _choice(monkeypatch, kind, dtype, Q, D):
  monkeypatch.setattr(api, "target_device_kind", lambda: kind)
  x = jax.ShapeDtypeStruct((1, Q, 2, D), dtype)
  return pallas_gpu.choice(x, x, x)[0]
