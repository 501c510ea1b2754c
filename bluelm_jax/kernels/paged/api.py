"""Attention to keys and values that lie in pages: what decoding and prefilling in pieces both call.

Shapes: R rows, Q queries of a row, M pages of a row's table, X pages, P slots of a page, H heads, K key-value heads
(H a multiple of K), D head size. Heads come before slots, so that a head's part of a page is one matrix.
"""

import importlib

import jax.numpy as jnp

from bluelm_jax.kernels.attention import api as attention_api

IMPLEMENTATIONS = ("auto", "xla", "pallas_tpu", "pallas_triton")


def attention(
    q_RQHD, k_XKPD, v_XKPD, tables_RM, positions_RQ, *, k_scale=None, v_scale=None, scale=None, implementation="auto",
):
  """Each row's queries attend to the sequence that its table spells, themselves and what is before them (arXiv 2309.06180).

  A row holds queries of one sequence, whose keys are written already: its token at position p lies in page
  tables[r, p // P], slot p % P. Long prompts are several rows with the same table.

  Args:
    k_XKPD, v_XKPD: in q's dtype, or int8 with scales. Their D may be more than q's, for a TPU's sake; what lies behind is not used.
    tables_RM: int32, pages of the sequence in order; entries behind its last one may be anything in range.
    positions_RQ: int32, of each query in its sequence, ascending; -1 for a query that is not there, which yields zeros.
    k_scale, v_scale: float32, of int8 pages: what a number of a token's head is to be multiplied by
      (`quantize.quantize` makes both). None: pages are plain.
    scale: of the scores, positive; None means D ** -0.5.
    implementation: a name of IMPLEMENTATIONS; "auto" takes the platform's kernel and logs its choice once.

  Returns:
    [R, Q, H, D] in q's dtype.

  Raises:
    ValueError: shapes that do not fit, or what the chosen implementation cannot do.
  """
  _check(q_RQHD, k_XKPD, v_XKPD, tables_RM, positions_RQ, k_scale, v_scale)
  D = q_RQHD.shape[-1]
  scale = D**-0.5 if scale is None else scale
  if not scale > 0:
    raise ValueError(f"attention scale {scale} must be positive")
  name = choose(implementation, q_RQHD, k_XKPD, tables_RM)
  if refused := _refusal(name, q_RQHD, k_XKPD, tables_RM):
    raise ValueError(refused)
  scales = None if k_scale is None else (k_scale, v_scale)
  q_RQHD = jnp.pad(q_RQHD, ((0, 0), (0, 0), (0, 0), (0, k_XKPD.shape[3] - D)))
  return _module(name).attention(q_RQHD, k_XKPD, v_XKPD, tables_RM, positions_RQ, scales, scale)[..., :D]


def choose(implementation: str, q_RQHD, k_XKPD, tables_RM) -> str:
  """The implementation that "auto" stands for; any other name is returned as it is."""
  if implementation not in IMPLEMENTATIONS:
    raise ValueError(f"paged attention {implementation!r} is unknown; use {', '.join(IMPLEMENTATIONS)}")
  if implementation != "auto":
    return implementation
  platform = attention_api.target_platform()
  name, reason = {"tpu": "pallas_tpu", "gpu": "pallas_triton"}.get(platform, "xla"), f"the {platform} path"
  if refused := _refusal(name, q_RQHD, k_XKPD, tables_RM):
    name, reason = "xla", refused
  attention_api.log_choice("paged attention", name, reason)
  return name


def _module(name: str):
  return importlib.import_module(f"bluelm_jax.kernels.paged.{name}")


def _refusal(name, q, k, tables) -> str | None:
  return None if name == "xla" else _module(name).refusal(q, k, tables)


def _check(q, k, v, tables, positions, k_scale, v_scale):
  R, Q, H, D = q.shape
  if k.ndim != 4 or k.shape != v.shape or k.shape[3] < D or H % k.shape[1]:
    raise ValueError(f"q {q.shape}, k {k.shape} and v {v.shape} do not fit: pages are [X, K, P, D], heads a multiple of K")
  if tables.shape[0] != R or positions.shape != (R, Q):
    raise ValueError(f"tables {tables.shape} and positions {positions.shape} do not fit {R} rows of {Q} queries")
  if k.dtype != v.dtype or k.dtype not in (q.dtype, jnp.int8):
    raise ValueError(f"{k.dtype} keys and {v.dtype} values do not go with {q.dtype} queries; keep pages in {q.dtype}, or in int8 with scales")
  for name, x in (("k_scale", k_scale), ("v_scale", v_scale)):
    if (x is None) == (k.dtype == jnp.int8):
      raise ValueError(f"{name} goes with int8 pages, and these are {k.dtype}; pass both scales with int8 pages, and none with others")
    if x is not None and (x.shape != k.shape[:3] or x.dtype != jnp.float32):
      raise ValueError(f"{name} is {x.dtype} {x.shape}; it must be float32 {k.shape[:3]}, a number for each token of each head")
