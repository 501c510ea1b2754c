"""The shipped data: size, provenance, schema, and that held-out means held out."""

import pytest

from bluelm_jax.data import images
from bluelm_jax.data import sources
from bluelm_jax.data.tasks import screens

SPLITS = ("train", "select", "test")


def shard(name):
  found = sources.read_shard(f"assets/{name}.array_record")
  return [found[i] for i in range(len(found))]


def test_at_most_twelve_megabytes():
  assert sum(p.stat().st_size for p in sources.ASSETS.iterdir()) <= 12_000_000


@pytest.mark.parametrize("split", ["train", "test"])
def test_prose(split):
  records = shard(f"text-{split}")
  assert {r.meta["language"] for r in records} == {"zh", "en"}
  assert all(r.text and r.source and r.licence for r in records)


def test_no_held_out_prose_was_trained_on():
  trained = {line for r in shard("text-train") for line in r.text.splitlines() if len(line) > 60}
  held = [line for r in shard("text-test") for line in r.text.splitlines() if len(line) > 60]
  assert len(held) > 300 and not trained & set(held)


@pytest.mark.parametrize("split", SPLITS)
def test_screens(split):
  records = shard(f"screens-{split}")
  assert len(records) >= 150
  assert {r.meta["language"] for r in records} == {"zh", "en"} and len({r.meta["kit"] for r in records}) == 3
  for r in records:
    assert r.licence == "MIT" and r.source and len(r.images) == 1 and r.meta["caption"]
    assert images.decode(r.images[0]).shape == (r.meta["height"], r.meta["width"], 3)
    for e in r.meta["elements"]:
      l, t, right, b = e["box"]
      assert -1e-6 <= l < right <= 1 + 1e-6 and -1e-6 <= t < b <= 1 + 1e-6
      assert e["role"] in screens.ROLE_NAMES and isinstance(e["text"], str)
      assert e["color"] in ("", None) or e["color"] in screens.COLOR_NAMES


def test_held_out_layouts_were_never_trained_on():
  templates = {s: {r.meta["template"] for r in shard(f"screens-{s}")} for s in SPLITS}
  pictures = {s: {r.images[0] for r in shard(f"screens-{s}")} for s in SPLITS}
  for a, b in (("train", "select"), ("train", "test"), ("select", "test")):
    assert not templates[a] & templates[b] and not pictures[a] & pictures[b]


def test_provenance_is_told():
  for name, words in (("TEXT.md", "CC-BY-SA-3.0"), ("SCREENS.md", "MIT")):
    assert words in (sources.ASSETS / name).read_text()
