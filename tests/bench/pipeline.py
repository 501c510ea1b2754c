"""50,000 documents filtered, deduplicated and written, and what dedup finds of copies whose origin is known.

  python -m tests.bench.pipeline [documents]

Documents are put together, from a seed, of three paragraphs and more, dealt out at random: English from the docstrings of the
packages installed here, Chinese from the shipped prose. So no two are alike but the tenth that are copies, changed in known ways. The time is a whole `prepare` in its own
process, imports and workers' start included.
"""

import collections
import os
import pathlib
import re
import subprocess
import sys
import sysconfig
import tempfile
import time

import numpy as np

from bluelm_jax.data import sample as sample_lib
from bluelm_jax.data import sources
from bluelm_jax.data.sample import Sample
from bluelm_jax.pipeline import files
from tests.bench import machine

_BYTES, _PARAGRAPH = 550, 250  # least of a document, most of a paragraph: so a document has three at least
CONFIG = """
from bluelm_jax.pipeline import defaults

def get_config(path):
  c = defaults.dataset()
  c.name, c.sources.docs = "bench", dict(kind="array_record", path=path, licence="-")
  return c
"""


def english(wanted: int) -> list[str]:
  """Paragraphs of docstrings, each once, in the order of the files, until `wanted` bytes."""
  found, size = {}, 0
  roots = [sysconfig.get_paths()[k] for k in ("stdlib", "purelib")]
  for path in sorted({p for root in roots for p in pathlib.Path(root).rglob("*.py")}):
    for doc in re.findall(r'"""(.*?)"""', path.read_text("utf-8", errors="replace"), re.DOTALL):
      for paragraph in doc.split("\n\n"):
        text = " ".join(paragraph.split())
        if 60 <= len(text) <= _PARAGRAPH and ">>>" not in text and text[-1] in ".!?" and text not in found:
          found[text] = None
          size += len(text)
    if size > wanted:
      break
  return list(found)


def chinese() -> list[str]:
  shard = sources.read_shard("assets/text-train.array_record")
  return list(dict.fromkeys(p for i in range(len(shard)) if shard[i].meta["language"] == "zh" for p in shard[i].text.split("\n") if len(p.encode()) <= _PARAGRAPH))


def compose(paragraphs: list[str], count: int, rng) -> list[str]:
  """Documents of _BYTES and a little more; no paragraph occurs again before all have occurred."""
  order, documents = [], []
  for _ in range(count):
    parts = []
    while sum(len(p.encode()) for p in parts) < _BYTES:
      order = order or rng.permutation(len(paragraphs)).tolist()
      parts.append(paragraphs[order.pop()])
    documents.append("\n".join(parts))
  return documents


def change(text: str, kind: str, rng) -> str:
  """A copy of a document, changed in one of the known ways."""
  if kind == "case, spaces, signs":
    return text.upper().replace(",", " , ").replace("。", " 。")
  if kind == "words replaced":  # one in 60, at least one; a Han character is a word
    words = re.findall(r"[\u4e00-\u9fff]|[^\u4e00-\u9fff\s]+\s*|\s+", text)
    for i in rng.choice(len(words), max(len(words) // 60, 1), replace=False):
      words[i] = "别" if "\u4e00" <= words[i] <= "\u9fff" else "other "
    return "".join(words)
  if kind == "end cut":
    return text[: -max(len(text) // 12, 1)] + "."
  if kind == "header and footer":
    return f"Page {rng.integers(1000)} of the manual.\n{text}\nSee also section {rng.integers(1000)}."
  if kind == "paragraphs in another order":
    parts = text.split("\n")
    return "\n".join(parts[1:] + parts[:1])
  return text


KINDS = ("equal", "case, spaces, signs", "words replaced", "end cut", "header and footer", "paragraphs in another order")


def generate(path: pathlib.Path, count: int) -> int:
  """Writes the documents; returns their bytes."""
  rng = np.random.default_rng(0)
  copies = zh = count // 10
  base = compose(chinese(), zh, rng) + compose(english(count * _BYTES), count - copies - zh, rng)
  made = [Sample("docs: bench", "-", text, meta={"id": i, "of": i, "kind": ""}) for i, text in enumerate(base)]
  for n, i in enumerate(rng.choice(len(base), copies, replace=False).tolist()):
    kind = KINDS[n % len(KINDS)]
    made.append(Sample("docs: bench", "-", change(base[i], kind, rng), meta={"id": len(made), "of": i, "kind": kind}))
  sample_lib.write_shard(str(path), [made[i] for i in rng.permutation(len(made))])
  return sum(len(s.text.encode()) for s in made)


def judge(output: pathlib.Path):
  """(kind -> [copies found, copies that passed the filters with their original], documents removed as copies, those of them that are)."""
  passed = [s.meta for p in sorted((output / "stages" / "clean").glob("*.samples")) for s in files.read_samples(str(p))]
  ids = {m["id"] for m in passed}
  kept = set()
  for shard in sorted(output.glob("*.array_record")):
    read = sources.read_shard(str(shard))
    kept |= {read[i].meta["id"] for i in range(len(read))}
  copied = {m["of"] for m in passed if m["kind"] and m["of"] in ids}
  recall = collections.defaultdict(lambda: [0, 0])
  for m in passed:
    if m["kind"] and m["of"] in ids:
      recall[m["kind"]][0] += not {m["id"], m["of"]} <= kept
      recall[m["kind"]][1] += 1
  removed = [m for m in passed if m["id"] not in kept]
  return recall, len(removed), sum(m["of"] in copied for m in removed), len(passed), len(kept)


def main():
  count = int(sys.argv[1]) if len(sys.argv) > 1 else 50_000
  with tempfile.TemporaryDirectory() as work:
    work = pathlib.Path(work)
    size = generate(work / "docs.array_record", count)
    (work / "config.py").write_text(CONFIG)
    command = [sys.executable, "-m", "bluelm_jax.prepare", f"--config={work}/config.py:{work}/docs.array_record", f"--output={work}/out"]
    started, used = time.perf_counter(), os.times()
    subprocess.run(command, check=True, cwd=machine.ROOT, env={**os.environ, "PYTHONPATH": str(machine.ROOT)})
    seconds, cpu = time.perf_counter() - started, sum(os.times()[2:4]) - sum(used[2:4])
    recall, removed, right, passed, kept = judge(work / "out")
  found, known = (sum(r[i] for r in recall.values()) for i in (0, 1))
  print(f"{machine.line()}; {count:,} documents, {size / 1e6:.1f} MB\n")
  print("| | |\n|---|---|")
  print(f"| seconds, start to end (of the processors) | {seconds:.1f} ({cpu:.1f}) |\n| passed the filters | {passed:,} |\n| written | {kept:,} |")
  print(f"| precision of {removed:,} removed as copies | {right / max(removed, 1):.4f} |\n| recall of {known:,} copies | {found / max(known, 1):.4f} |")
  for kind in KINDS:
    print(f"| recall, {kind} ({recall[kind][1]}) | {recall[kind][0] / max(recall[kind][1], 1):.4f} |")


if __name__ == "__main__":
  main()
