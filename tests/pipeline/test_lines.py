"""Lines that several pages share stay once, and what a held-out page says stands in no other."""

import pytest

pytest.importorskip("apache_beam")

from bluelm_jax.data import sources
from bluelm_jax.pipeline import defaults
from bluelm_jax.pipeline import run

ONE = ["--runner=FnApiRunner", "--direct_running_mode=in_memory", "--direct_num_workers=1"]


def test_lines_stay_once_and_held_out_lines_in_no_other_page(tmp_path):
  (tmp_path / "raw").mkdir()
  shard = sources.read_shard("assets/text-train.array_record")
  lines = [line for s in (shard[i] for i in range(60)) if s.meta["language"] == "en" for line in s.text.split("\n") if len(line.split()) > 12][:80]
  shared = "Every one of these many pages says this very same sentence to its readers, again and again."
  for i in range(20):
    own = lines[4 * i : 4 * i + 4]
    inside = "Before it, " + lines[(4 * i + 4) % 80] + " And after it."  # says what the next page says
    (tmp_path / f"raw/{i}.txt").write_text("\n".join([*own, shared if i % 2 else shared.upper(), inside]))
  c = defaults.dataset()
  c.name, c.quality.rules, c.quality.unique_lines, c.holdout, c.mixture.by = "one", (), True, 3, "all"
  c.dedup.similarity = 1.0
  c.sources.pages = dict(kind="text", path=f"{tmp_path}/raw/*.txt", licence="MIT", language="en")
  manifest = run.run(c, str(tmp_path / "out"), ONE)
  texts = {split: [] for split in ("train", "test")}
  for name in manifest["shards"]:
    found = sources.read_shard(str(tmp_path / "out" / name))
    texts[name.split("-")[1]] += [found[i].text for i in range(len(found))]
  assert len(texts["train"]) + len(texts["test"]) == 20 and 2 < len(texts["test"]) < 15
  assert sum(t.lower().count(shared.lower()) for t in texts["train"]) == 0 and sum(t.lower().count(shared.lower()) for t in texts["test"]) == 1
  train = "\n".join(texts["train"])
  assert not any(line in train for t in texts["test"] for line in t.split("\n"))
  assert sum(line in train for line in lines) > 20  # what is no one else's stays
