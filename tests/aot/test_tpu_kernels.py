"""TPU kernels and rings compiled for described chips, with no chip: nothing runs, so this proves what the compiler accepts."""

import functools
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bluelm_jax.kernels.attention import api
from bluelm_jax.kernels.attention import masks
from bluelm_jax.kernels.attention import ring
from bluelm_jax.kernels.paged import api as paged
from bluelm_jax.sharding import remat
from bluelm_jax.training.precompile import topology

WHOLE = bool(os.environ.get("AOT_WHOLE"))  # `make aot`; otherwise a short set
CHIPS = {"v5e": "v5e:2x4", "v5p": "v5p:2x2x2", "v6e": "v6e:2x4"}
HEADS = [(64, 64), (72, 72), (80, 80), (128, 128), (192, 128)]

try:
  topology.devices(CHIPS["v5e"])
except ValueError as missing:
  pytest.skip(str(missing), allow_module_level=True)


def mesh_of(chip, devices=None):
  return jax.sharding.Mesh(np.array(topology.devices(CHIPS[chip])[:devices]), ("context",))


def compiled(mesh, function, shapes, spec):
  structs = [jax.ShapeDtypeStruct(shape, dtype, sharding=jax.NamedSharding(mesh, spec)) for shape, dtype in shapes]
  with jax.set_mesh(mesh):
    return jax.jit(function).lower(*structs).compile().as_text()


@pytest.mark.parametrize("head,causal,packed,window,dtype", [
    (head, causal, packed, None, dtype)
    for head in (HEADS if WHOLE else HEADS[3:4]) for causal in (True, False) for packed in (True, False)
    for dtype in ((jnp.bfloat16, jnp.float32) if WHOLE else (jnp.bfloat16,)) if WHOLE or causal == packed
] + [((128, 128), True, True, 1024, jnp.bfloat16)] * WHOLE)
@pytest.mark.parametrize("chip", CHIPS)
def test_kernels_compile(chip, head, causal, packed, window, dtype):
  (D, V), B, S, H, K = head, 2, 2000, 4, 2

  def loss(q, k, v, positions, ids):
    numbers = dict(q_positions=positions, k_positions=positions) if causal else {}
    numbers |= dict(q_segment_ids=ids, k_segment_ids=ids) if packed else {}
    out, lse = api.attention(q, k, v, causal=causal, window=window, implementation="auto", **numbers)
    return out.astype(jnp.float32).sum() + lse.sum()

  shapes = [((B, S, H, D), dtype), ((B, S, K, D), dtype), ((B, S, K, V), dtype), ((B, S), jnp.int32), ((B, S), jnp.int32)]
  text = compiled(mesh_of(chip, 1), jax.grad(loss, (0, 1, 2)), shapes, jax.P())
  for name in ("attention_forward", "attention_dq", "attention_dkv"):
    assert any(name in line and "tpu_custom_call" in line for line in text.splitlines()), name


@pytest.mark.parametrize("D,P,Q,dtype,int8", [
    (128, P, Q, dtype, int8) for P in (16, 32, 128) for Q in (1, 64) for dtype in (jnp.bfloat16, jnp.float32) for int8 in (False, True) if P > 16 or not int8
] * WHOLE + [(128, 16, 1, jnp.bfloat16, False), (80, 32, 16, jnp.bfloat16, True), (64, 16, 3, jnp.float32, False)])
@pytest.mark.parametrize("chip", CHIPS if WHOLE else ["v5e", "v5p"])
def test_paged_kernels_compile(chip, D, P, Q, dtype, int8):
  R, K, G, X, M = 3, 4, 4, 20000, 50
  scales = [((X, K, P), jnp.float32)] * 2 * int8
  shapes = [((R, Q, K * G, D), dtype), *[((X, K, P, 128), jnp.int8 if int8 else dtype)] * 2, ((R, M), jnp.int32), ((R, Q), jnp.int32), *scales]
  run = lambda *x: paged.attention(*x[:5], **dict(zip(("k_scale", "v_scale"), x[5:])))
  text = compiled(mesh_of(chip, 1), run, shapes, jax.P())
  lines = text.splitlines()
  assert any("paged_attention" in line and "tpu_custom_call" in line for line in lines)
  assert not any(f"[{X},{K},{P},128]" in line and " copy(" in line for line in lines), "all pages are copied for a call"


@pytest.mark.parametrize("chip", CHIPS)
def test_kernels_stand_beside_the_rings_transfers(chip):
  """In each direction's loop, an attention kernel lies between the start and the end of every transfer."""
  B, S, H, K, D = 1, 16384, 16, 4, 128

  def loss(q, k, v, positions, ids):
    local = functools.partial(ring.attention, axis="context", strategy="ring", scale=D**-0.5)
    out, lse = jax.shard_map(local, in_specs=jax.P(None, "context"), out_specs=jax.P(None, "context"), check_vma=False)(
        q, k, v, masks.make(positions, positions, ids, ids, causal=True))
    return out.astype(jnp.float32).sum() + lse.sum()

  shapes = [((B, S, H, D), jnp.bfloat16), *[((B, S, K, D), jnp.bfloat16)] * 2, *[((B, S), jnp.int32)] * 2]
  text = compiled(mesh_of(chip), jax.grad(loss, (0, 1, 2)), shapes, jax.P(None, "context"))
  loops = [c for c in text.split("\n\n") if "collective-permute-start(" in c and "tpu_custom_call" in c and not c.startswith("ENTRY")]
  assert len(loops) == 2, "one loop forward and one backward"
  for loop in loops:
    lines = loop.splitlines()
    kernels = [n for n, line in enumerate(lines) if "tpu_custom_call" in line and "attention_" in line]
    starts = {line.split(" = ")[0].strip(): n for n, line in enumerate(lines) if "collective-permute-start(" in line}
    assert len(starts) >= 4
    for name, start in starts.items():
      end = next(n for n, line in enumerate(lines) if f"collective-permute-done({name})" in line)
      assert any(start < n < end for n in kernels), name


@pytest.mark.parametrize("name,runs", [("full", 2), ("names", 1), ("dots_no_batch", 1)])
def test_policies_that_keep_attention_run_its_kernel_once(name, runs):
  def loss(q, k, v):
    return jnp.sin(api.attention(jnp.sin(q), k, v)[0].astype(jnp.float32)).sum()

  text = compiled(mesh_of("v5e", 1), jax.value_and_grad(jax.checkpoint(loss, policy=remat.policy(name)), (0, 1, 2)), [((1, 1024, 2, 128), jnp.bfloat16)] * 3, jax.P())
  assert sum("tpu_custom_call" in line and "attention_forward" in line.split(" = ")[0] for line in text.splitlines()) == runs
