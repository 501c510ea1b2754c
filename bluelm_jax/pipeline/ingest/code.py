"""Source code: which files are taken, in which language they are, and how a comment begins there."""

import os

LANGUAGES = {
    ".c": "c", ".h": "c", ".cc": "c++", ".cpp": "c++", ".cxx": "c++", ".hh": "c++", ".hpp": "c++", ".cs": "c#", ".css": "css", ".go": "go",
    ".hs": "haskell", ".java": "java", ".jl": "julia", ".js": "javascript", ".jsx": "javascript", ".mjs": "javascript", ".kt": "kotlin",
    ".lua": "lua", ".md": "markdown", ".php": "php", ".pl": "perl", ".pm": "perl", ".proto": "protobuf", ".py": "python", ".r": "r",
    ".rb": "ruby", ".rs": "rust", ".rst": "restructuredtext", ".scala": "scala", ".sh": "shell", ".sql": "sql", ".swift": "swift",
    ".ts": "typescript", ".tsx": "typescript"}
_HASH = {"julia", "perl", "python", "r", "ruby", "shell"}
_MARKS = {"haskell": ("--", ""), "lua": ("--", ""), "sql": ("--", ""), "css": ("/*", " */"), "markdown": ("<!--", " -->"), "restructuredtext": ("..", "")}


def language(path: str) -> str:
  """Of a file by its suffix; "" if it is none of these."""
  return LANGUAGES.get(os.path.splitext(path)[1].lower(), "")


def comment(text: str, code: str) -> str:
  """A line of comment."""
  before, after = ("#", "") if code in _HASH else _MARKS.get(code, ("//", ""))
  return f"{before} {text}{after}"
