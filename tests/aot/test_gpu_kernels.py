"""The GPU kernels compiled for a described H100, with no GPU: nothing runs, so this proves what the compiler accepts."""

import functools
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bluelm_jax.kernels.attention import masks
from bluelm_jax.kernels.attention import pallas_gpu
from bluelm_jax.kernels.attention import pallas_triton
from bluelm_jax.kernels.attention import ring
from bluelm_jax.kernels.paged import api as paged
from bluelm_jax.sharding import chips
from bluelm_jax.training.precompile import hlo
from bluelm_jax.training.precompile import topology

WHOLE = bool(os.environ.get("AOT_WHOLE"))  # `make aot`; otherwise a short set

try:
  DEVICES = topology.devices("h100:1")
except ValueError as missing:
  pytest.skip(str(missing), allow_module_level=True)


@pytest.fixture(scope="module")
def mesh():
  return jax.sharding.Mesh(np.array(DEVICES), ("data",))


def _compile(module, mesh, head, causal, packed, dtype=jnp.bfloat16, window=None, Q=1000):
  """The texts of the compiled forward and backward pass."""
  D, V = head
  B, H, K = 2, 4, 2
  struct = lambda shape, dtype: jax.ShapeDtypeStruct(shape, dtype, sharding=jax.NamedSharding(mesh, jax.P()))
  numbers = [struct((B, Q), jnp.int32)] * 4
  q, k, v, d_out = (struct((B, Q, *rest), dtype) for rest in ((H, D), (K, D), (K, V), (H, V)))
  row = struct((B, Q, H), jnp.float32)
  def mask(q_positions, k_positions, q_ids, k_ids):
    return masks.make(q_positions, k_positions, *((q_ids, k_ids) if packed else (None, None)), causal=causal, window=window)
  forward = lambda numbers, *x: module.forward(*x, mask(*numbers), 0.1)
  backward = lambda numbers, q, k, v, *x: module.backward(q, k, v, mask(*numbers), 0.1, *x)
  with jax.set_mesh(mesh):
    return [jax.jit(run).lower(numbers, *args).compile().as_text()
            for run, args in ((forward, (q, k, v)), (backward, (q, k, v, row, row, d_out)))]


@pytest.mark.parametrize("module", [pallas_triton, pallas_gpu], ids=["triton", "hopper"])
@pytest.mark.parametrize(
    "head, causal, packed, more",
    [((D, D), causal, packed, {}) for D in (64, 128) for causal in (False, True) for packed in (False, True) if WHOLE or causal == packed]
    + [((80, 80), True, False, {}), ((72, 72), False, True, {"Q": 1024}), ((192, 128), True, True, {}),
       ((128, 128), True, True, {"window": 100}), ((64, 64), False, False, {"Q": 1024, "dtype": jnp.float16})])
def test_compiles(module, head, causal, packed, more, mesh):
  texts = _compile(module, mesh, head, causal, packed, **more)
  for text, names in zip(texts, (["attention_forward"], ["attention_dq", "attention_dkv"])):
    assert all(name in text for name in names)


def test_triton_compiles_in_float32(mesh):
  _compile(pallas_triton, mesh, (128, 128), True, True, jnp.float32)


@pytest.mark.parametrize("R, Q, K, D, P, M, dtype, int8", [
    (1, 1, 4, 128, 16, 2048, jnp.bfloat16, False), (64, 1, 4, 128, 32, 128, jnp.bfloat16, True), (3, 64, 2, 80, 16, 50, jnp.bfloat16, False),
    (2, 5, 2, 96, 64, 20, jnp.float16, True), (2, 1, 8, 64, 128, 20, jnp.float32, False)])
def test_paged_kernels_compile(R, Q, K, D, P, M, dtype, int8, mesh):
  struct = lambda shape, dtype: jax.ShapeDtypeStruct(shape, dtype, sharding=jax.NamedSharding(mesh, jax.P()))
  X = 5 * 2**21 // P  # some beyond what 32 bits address
  pages, scale = struct((X, K, P, D), jnp.int8 if int8 else dtype), struct((X, K, P), jnp.float32) if int8 else None
  args = struct((R, Q, 4 * K, D), dtype), pages, pages, struct((R, M), jnp.int32), struct((R, Q), jnp.int32)
  run = lambda args, k_scale, v_scale: paged.attention(*args, k_scale=k_scale, v_scale=v_scale)
  with jax.set_mesh(mesh):
    assert "paged_attention" in jax.jit(run).lower(args, scale, scale).compile().as_text()


def test_hopper_kernels_are_chosen_for_the_described_chip(mesh):
  x = jax.ShapeDtypeStruct((1, 512, 4, 128), jnp.bfloat16)
  with jax.set_mesh(mesh):
    assert pallas_gpu.choice(x, x, x) == ("pallas_gpu", "NVIDIA H100 80GB HBM3")


def test_kernels_stand_beside_the_rings_transfers():
  mesh = jax.sharding.Mesh(np.array(topology.devices("h100:4")), ("context",))
  struct = lambda shape, dtype: jax.ShapeDtypeStruct(shape, dtype, sharding=jax.NamedSharding(mesh, jax.P(None, "context")))
  q, k = (struct((1, 32768, heads, 128), jnp.bfloat16) for heads in (16, 4))
  numbers = struct((1, 32768), jnp.int32)

  @functools.partial(jax.shard_map, mesh=mesh, in_specs=jax.P(None, "context"), out_specs=jax.P(None, "context"), check_vma=False)
  def attend(q, k, v, positions, segment_ids):
    mask = masks.make(positions, positions, segment_ids, segment_ids, causal=True)
    return ring.attention(q, k, v, mask, axis="context", strategy="ring", scale=0.1, implementation="pallas_gpu")[0]

  loss = lambda *x: jnp.sum(attend(*x).astype(jnp.float32) ** 2)
  options = chips.compiler_options(DEVICES[0].device_kind)
  with jax.set_mesh(mesh):
    text = jax.jit(jax.value_and_grad(loss, (0, 1, 2)), compiler_options=options).lower(q, k, k, numbers, numbers).compile().as_text()
  hops = [c for c in hlo.collectives(text) if c.kind == "collective-permute" and c.trips > 1]
  assert len(hops) == 2 and all(c.overlap for c in hops), "one transfer a hop, forward and backward"
