"""In which order a reader takes the files of a repository, or the pages of a book.

What a file needs comes before it, as in DeepSeek-Coder's repositories (Guo et al. 2024, arXiv 2401.14196, section 2.1): the modules a
Python file imports, the files that JavaScript and TypeScript name by a relative path, the headers that C and C++ include in quotes.
A page of HTML comes after the one whose link of relation "next" names it. Otherwise names decide, numbers in them by their value.
"""

import posixpath
import re
from typing import Iterable, Mapping

_IMPORT = re.compile(r"^[ \t]*(?:from[ \t]+(\.*[\w.]*)[ \t]+import[ \t]+(\([^)]*\)|[^\n#;]+)|import[ \t]+([\w. \t,]+))", re.M)
_RELATIVE = re.compile(r"""(?:\bfrom|\bimport|\brequire\s*\(|\bimport\s*\()\s*['"](\.{1,2}/[^'"\n]+)['"]""")
_INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]*"([^"\n]+)"', re.M)
_SCRIPTS = ("", ".ts", ".tsx", ".js", ".jsx", ".mjs", "/index.ts", "/index.tsx", "/index.js")
_FIRST = re.compile(r"(?:readme|index|preface|foreword)\b", re.I)


def natural(path: str) -> tuple:
  """A key that sorts chapter2 before chapter10, and in a folder what introduces the rest first."""
  *folders, name = path.split("/")
  key = [(1, _numbers(folder)) for folder in folders] + [(0, not _FIRST.match(name), _numbers(name))]
  return tuple(key), path


def _numbers(name: str) -> tuple:
  return tuple((0, int(part), "") if part.isdecimal() else (1, 0, part.lower()) for part in re.split(r"(\d+)", name) if part)


def order(before: Mapping[str, set[str]]) -> list[str]:
  """Paths in natural order, but each after those it needs: `before` has them by path. A circle is broken where it is entered."""
  found, entered = [], set()
  for start in sorted(before, key=natural):
    stack = [(start, False)]
    while stack:
      path, ready = stack.pop()
      if ready:
        found.append(path)
      elif path not in entered:
        entered.add(path)
        stack.append((path, True))
        stack += [(p, False) for p in sorted(before.keys() & before[path] - entered, key=natural, reverse=True)]
  return found


def references(path: str, text: str, code: str, root: str) -> list[str]:
  """Paths that a file may mean by what it imports or includes; which of them exist, `order` sees. `root` is its repository's folder."""
  here = posixpath.dirname(path)
  if code == "python":
    return [f"{posixpath.join(base, module)}{end}" for base, module in _modules(text, here, root) for end in (".py", "/__init__.py")]
  if code in ("javascript", "typescript"):
    named = [posixpath.normpath(posixpath.join(here, name)) for name in _RELATIVE.findall(text)]
    return [name + end for name in named for end in _SCRIPTS]
  if code in ("c", "c++"):
    bases = (here, root, posixpath.join(root, "include"), posixpath.join(root, "src"))
    return [posixpath.normpath(posixpath.join(base, name)) for name in _INCLUDE.findall(text) for base in bases]
  return []


def _modules(text: str, here: str, root: str) -> Iterable[tuple[str, str]]:
  """(folder, module as a path) of what a Python file imports."""
  bases = dict.fromkeys((posixpath.dirname(root), root, posixpath.join(root, "src"), posixpath.join(root, "lib"), here))
  for source, names, modules in _IMPORT.findall(text):
    if not source:
      yield from ((base, module.split()[0].replace(".", "/")) for module in modules.split(",") if module.strip() for base in bases)
      continue
    dots = len(source) - len(source.lstrip("."))
    module = source[dots:].replace(".", "/")
    parts = [name.split()[0] for name in names.strip("() \t").replace("\n", " ").split(",") if name.strip() and name.split()[0].isidentifier()]
    folders = [posixpath.normpath(posixpath.join(here, *[".."] * (dots - 1)))] if dots else bases
    for folder in folders:
      folder = "" if folder == "." else folder
      if module:
        yield folder, module
      yield from ((folder, posixpath.join(module, part)) for part in parts)
