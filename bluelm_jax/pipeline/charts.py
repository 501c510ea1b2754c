"""Bars and tables of a data card, as HTML."""

import html
from typing import Any, Mapping, Sequence


def bars(counts: Mapping[str, float]) -> str:
  """A bar chart as inline SVG."""
  largest = max([*counts.values(), 1])
  rows = "".join(
      f'<text x="0" y="{20 * i + 14}">{html.escape(str(name))}</text><rect x="240" y="{20 * i + 3}" width="{max(360 * n / largest, 1):.1f}" height="14"/>'
      f'<text x="{246 + 360 * n / largest:.1f}" y="{20 * i + 14}">{n:,.0f}</text>' for i, (name, n) in enumerate(counts.items()))
  return f'<svg width="700" height="{20 * len(counts) + 4}" role="img">{rows}</svg>'


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
  """A table; cells are escaped."""
  cells = "".join("<tr>" + "".join(f"<td>{html.escape(str(x))}</td>" for x in row) + "</tr>" for row in rows)
  return "<table><tr>" + "".join(f"<th>{h}</th>" for h in head) + f"</tr>{cells}</table>"
