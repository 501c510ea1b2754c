"""Markdown to paragraphs; code and embedded HTML are left out."""

import markdown_it


def paragraphs(page: str) -> list[str]:
  """Headings, paragraphs and list items, each on one line, without their marks."""
  found = []
  for token in markdown_it.MarkdownIt("commonmark").parse(page):
    if token.type == "inline":
      parts = [" " if c.type in ("softbreak", "hardbreak") else c.content for c in token.children if c.type not in ("html_inline", "image")]
      text = " ".join("".join(parts).split())
      if text:
        found.append(text)
  return found
