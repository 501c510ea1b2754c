"""Attention to keys and values that lie in pages: what decoding and prefilling in pieces both call.

Shapes: R rows, Q queries of a row, M pages of a row's table, X pages, P slots of a page, H heads, K key-value heads
(H a multiple of K), D head size.
"""

import importlib


IMPLEMENTATIONS = ("auto", "xla", "pallas_tpu", "pallas_triton")


def attention(q_RQHD, k_XPKD, v_XPKD, tables_RM, positions_RQ, *, scale=None, implementation="auto"):
  """Each row's queries attend to the sequence that its table spells, themselves and what is before them (arXiv 2309.06180).

  A row holds queries of one sequence, whose keys are written already: its token at position p lies in page
  tables[r, p // P], slot p % P. Long prompts are several rows with the same table.

  Args:
    tables_RM: int32, pages of the sequence in order; entries behind its last one may be anything in range.
    positions_RQ: int32, of each query in its sequence, ascending; -1 for a query that is not there, which yields zeros.
    scale: of the scores, positive; None means D ** -0.5.
    implementation: a name of IMPLEMENTATIONS; "auto" takes the platform's.

  Returns:
    [R, Q, H, D] in q's dtype.

  Raises:
    ValueError: shapes that do not fit, or what the chosen implementation cannot do.
  """
  R, Q, H, D = q_RQHD.shape
  if k_XPKD.shape != v_XPKD.shape or k_XPKD.shape[3] != D or H % k_XPKD.shape[2]:
    raise ValueError(f"q {q_RQHD.shape}, k {k_XPKD.shape} and v {v_XPKD.shape} do not fit: pages are [X, P, K, D], heads a multiple of K")
  if tables_RM.shape[0] != R or positions_RQ.shape != (R, Q):
    raise ValueError(f"tables {tables_RM.shape} and positions {positions_RQ.shape} do not fit {R} rows of {Q} queries")
  if implementation not in IMPLEMENTATIONS:
    raise ValueError(f"paged attention {implementation!r} is unknown; use {', '.join(IMPLEMENTATIONS)}")
  if implementation == "auto":
    implementation = "xla"
  module = importlib.import_module(f"bluelm_jax.kernels.paged.{implementation}")
  return module.attention(q_RQHD, k_XPKD, v_XPKD, tables_RM, positions_RQ, D**-0.5 if scale is None else scale)
