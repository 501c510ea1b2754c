"""The one attention call of the project.

Shapes: B batch, Q queries, S keys, H heads, K key-value heads (H a multiple of K), D head size of queries
and keys, V head size of values.
"""

import functools
import importlib
import logging

import jax
from jax.ad_checkpoint import checkpoint_name
import jax.numpy as jnp

from bluelm_jax.kernels.attention import masks
from bluelm_jax.kernels.attention import reference

# Modules with forward(q, k, v, mask, scale) -> (out, lse) and
# backward(q, k, v, mask, scale, lse, delta, d_out) -> (dq, dk, dv), which ring attention calls too.
BLOCKWISE = ("xla", "pallas_tpu", "pallas_gpu", "pallas_triton")
IMPLEMENTATIONS = ("auto", "reference", *BLOCKWISE)


def attention(
    q_BQHD, k_BSKD, v_BSKV, *, q_positions=None, k_positions=None, q_segment_ids=None, k_segment_ids=None,
    causal=True, window=None, scale=None, implementation="auto",
):
  """Softmax attention (FlashAttention, arXiv 2205.14135, in the blockwise backends).

  Args:
    q_positions, k_positions: int [B, Q] and [B, S]; causality is by position, not by index. None counts
      0, 1, ... where Q equals S.
    q_segment_ids, k_segment_ids: int, same shapes; attention stays inside equal ids. None: one segment.
    window: a query sees only keys less than `window` positions before it.
    scale: of the scores, positive; None means D ** -0.5.
    implementation: a name of IMPLEMENTATIONS. "auto" takes the backend's kernel and logs its choice once.

  Returns:
    (out [B, Q, H, V] in the dtype of v, log-sum-exp of the scaled scores [B, Q, H] in at least float32).
    A query that sees nothing has out 0 and log-sum-exp -inf.

  Raises:
    ValueError: shapes that do not fit, or what the chosen implementation cannot honour.
  """
  _check_shapes(q_BQHD, k_BSKD, v_BSKV)
  if causal and q_positions is None and k_positions is None:
    if q_BQHD.shape[1] != k_BSKD.shape[1]:
      raise ValueError(f"{q_BQHD.shape[1]} queries and {k_BSKD.shape[1]} keys need q_positions and k_positions to be causal")
    q_positions = k_positions = jnp.broadcast_to(jnp.arange(q_BQHD.shape[1], dtype=jnp.int32), q_BQHD.shape[:2])
  mask = masks.make(q_positions, k_positions, q_segment_ids, k_segment_ids, causal=causal, window=window)
  _check_mask(mask, q_BQHD.shape[:2], k_BSKD.shape[:2])
  scale = q_BQHD.shape[-1] ** -0.5 if scale is None else scale
  if not scale > 0:
    raise ValueError(f"attention scale {scale} must be positive")
  return apply(q_BQHD, k_BSKD, v_BSKV, mask, scale, implementation)


def apply(q_BQHD, k_BSKD, v_BSKV, mask: masks.Mask, scale: float, implementation: str = "auto"):
  """`attention` of arguments that fit."""
  name = choose(implementation, q_BQHD, k_BSKD, v_BSKV)
  if name == "reference":
    return reference.attention(q_BQHD, k_BSKD, v_BSKV, mask, scale)
  return _blockwise(q_BQHD, k_BSKD, v_BSKV, mask, scale, name)


def choose(implementation: str, q_BQHD, k_BSKD, v_BSKV) -> str:
  """The implementation that "auto" stands for; any other name is returned as it is."""
  if implementation not in IMPLEMENTATIONS:
    raise ValueError(f"attention implementation {implementation!r} is unknown; use {', '.join(IMPLEMENTATIONS)}")
  if implementation != "auto":
    return implementation
  platform = target_platform()
  if platform == "cpu" or q_BQHD.dtype == jnp.float64:
    name, reason = "xla", f"the {platform} path"
  elif platform == "tpu":
    short = q_BQHD.shape[1] < 128  # decoding: one query block would be mostly empty
    name, reason = ("xla", "few queries") if short else ("pallas_tpu", "a TPU")
  else:
    name, reason = backend("pallas_gpu").choice(q_BQHD, k_BSKD, v_BSKV)
  log_choice("attention", name, reason)
  return name


def target_platform() -> str:
  """"cpu", "tpu" or "gpu": where the program being traced will run."""
  platform = target().platform
  return "gpu" if platform in ("cuda", "rocm") else platform


def target_device_kind() -> str:
  """Such as "TPU v5 lite" or "NVIDIA H100 80GB HBM3": of the mesh in context, else of the default device."""
  return target().device_kind


def target_processors() -> int:
  """Streaming multiprocessors of that GPU; a full H100's where it does not say."""
  return getattr(target(), "core_count", None) or getattr(target(), "num_cores", None) or 132


def target():
  """The device, or the description of one, that the program being traced will run on."""
  described = jax.sharding.get_abstract_mesh().abstract_device  # the mesh may be of chips that are elsewhere
  return jax.devices()[0] if described is None else described


def backend(name: str):
  return importlib.import_module(f"bluelm_jax.kernels.attention.{name}")


@functools.cache
def log_choice(what: str, name: str, reason: str):
  """Says once which implementation "auto" took."""
  logging.getLogger("bluelm_jax").info("%s: %s (%s)", what, name, reason)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _blockwise(q, k, v, mask, scale, name):
  return backend(name).forward(q, k, v, mask, scale)


def _blockwise_forward(q, k, v, mask, scale, name):
  out, lse = named(*backend(name).forward(q, k, v, mask, scale))
  return (out, lse), (q, k, v, mask, out, lse)


def named(out, lse):
  """Both with the names by which `sharding.remat` keeps them, so that a backward pass need not run the kernel again."""
  return checkpoint_name(out, "attention_out"), checkpoint_name(lse, "attention_lse")


def _blockwise_backward(scale, name, residuals, cotangents):
  q, k, v, mask, out, lse = residuals
  d_out, d_lse = cotangents
  grads = backend(name).backward(q, k, v, mask, scale, finite(lse), delta(out, d_out, d_lse), d_out)
  return *grads, None


_blockwise.defvjp(_blockwise_forward, _blockwise_backward)


def delta(out_BQHV, d_out_BQHV, d_lse_BQH=None):
  """Sum of out * d_out - d_lse [B, Q, H]: what a score's gradient is measured from (arXiv 2205.14135, B.2)."""
  wide = jnp.promote_types(out_BQHV.dtype, jnp.float32)
  total = jnp.sum(out_BQHV.astype(wide) * d_out_BQHV.astype(wide), axis=-1)
  return total if d_lse_BQH is None else total - d_lse_BQH


def finite(lse_BQH):
  """The log-sum-exp with 0 where a query sees nothing: its probabilities are masked anyway."""
  return jnp.where(jnp.isneginf(lse_BQH), 0.0, lse_BQH)


def _check_shapes(q, k, v):
  if q.ndim != 4 or k.ndim != 4 or v.ndim != 4:
    raise ValueError(f"attention takes [B, S, heads, size]; got q {q.shape}, k {k.shape}, v {v.shape}")
  if k.shape[:3] != v.shape[:3] or q.shape[0] != k.shape[0] or q.shape[3] != k.shape[3]:
    raise ValueError(f"q {q.shape}, k {k.shape} and v {v.shape} do not fit: batch, keys, kv heads and head size must agree")
  if q.shape[2] % k.shape[2]:
    raise ValueError(f"{q.shape[2]} query heads do not divide into {k.shape[2]} key-value heads; make heads a multiple of kv heads")


def _check_mask(mask, queries, keys):
  for name, shape in (("q_positions", queries), ("k_positions", keys), ("q_segment_ids", queries), ("k_segment_ids", keys)):
    value = getattr(mask, name)
    if value is not None and value.shape != shape:
      raise ValueError(f"{name} {value.shape} must be {shape}, a number for each token")
