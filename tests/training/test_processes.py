"""Several processes that train one stage together: whatever befalls one of them, and however many go on, nothing is lost."""

import json
import signal

import numpy as np
import pytest

from bluelm_jax import supervise
from bluelm_jax.data import pack
from bluelm_jax.models import presets
from bluelm_jax.training import metrics
from bluelm_jax.training import online
from bluelm_jax.training import profiling
from bluelm_jax.training import record
from bluelm_jax.training import spikes
from bluelm_jax.training import stage
from tests.training import faulty
from tests.training import several
from tests.training import spoiling
from tests.training import test_checkpoints
from tests.training.programs import programs  # noqa: F401  (for every test here)

STEPS, MANY = 12, 10_000
EVALUATED = {
    "evaluate.every": 5, "evaluate.batches": 2,
    "evaluate.sources": {"prose": {"kind": "documents", "path": "assets/text-test.array_record", "share": 1.0}}}


@pytest.fixture(autouse=True)
def preset(monkeypatch):
  monkeypatch.setattr(presets, "PRESETS", dict(presets.PRESETS))
  faulty.add_preset()


def lines(directory):
  return [(r["step"], r["loss_tokens"], r["loss"]) for r in metrics.read(directory)]


def test_whatever_happens_to_processes(tmp_path, monkeypatch):
  """Two are killed, and find their newest checkpoint cut; then two that add up batches go back behind spoilt ones, SIGTERM comes to one, and one process goes on."""
  whole, killed, moved, alone = (tmp_path / name for name in ("whole", "killed", "moved", "alone"))
  job = lambda workdir: {"workdir": workdir, "steps": STEPS, "checkpoint_every": 2, **EVALUATED}
  several.kill(several.launch(job(killed)), killed, victim=1, new_lines=7, wait=0.0)
  assert 7 <= several.lines(killed) < STEPS
  newest = record.latest_step(killed)
  test_checkpoints.spoil(killed, newest, "cut")
  whole.mkdir()
  (whole / profiling.REQUEST).write_text("1")
  long = {"steps": MANY, "checkpoint_every": 2, "data.accumulate": ((0, 2),), "watch.every": 2, "spikes.patience": 3}
  spoilt = 5, 7, 10  # of steps 3, 4 and 5
  running = several.launch(job(killed), job(whole), {"workdir": moved, "spoil": spoilt, **long})
  several.await_lines(running, moved, 8)
  running[1].send_signal(signal.SIGTERM)
  messages = several.finish(running, supervise.GO_ON_LATER)

  assert lines(killed) == lines(whole) and [step for step, *_ in lines(whole)] == list(range(1, STEPS + 1))
  assert "".join(messages).count(f"warning: checkpoint {newest} is damaged") == 1 and record.latest_step(killed) == STEPS
  assert online.read(killed) == online.read(whole) and list(online.read(whole)) == [5, 10, STEPS]
  assert sorted(p.relative_to(whole).parts[:3] for p in whole.rglob("*.xplane.pb")) == [("profiles", "1", f"process-{i}") for i in range(2)]
  assert "".join(messages).count("warning: the steps up to 5 were bad; going on from step 2 with the data behind them") == 1
  saved = record.latest_step(moved)
  assert 8 <= saved < MANY and all(f"stopped: text was asked to end and saved step {saved} of {MANY}" in text for text in messages)

  monkeypatch.setattr(pack, "PackIterator", spoiling.iterator(set(spoilt)))
  for workdir in (moved, alone):
    stage.run(several.config(**long), workdir, stop_after=saved + 3)
  found, expected = (np.array(lines(workdir)) for workdir in (moved, alone))
  np.testing.assert_array_equal(found[:, :2], expected[:, :2])  # the same examples
  np.testing.assert_allclose(found[:, 2], expected[:, 2], rtol=1e-5)
  assert len(found) == saved + 3
  found, expected = ([json.loads(line) for line in (w / spikes.FILE_NAME).read_text().splitlines()] for w in (moved, alone))
  assert [line["step"] for line in found] == [line["step"] for line in expected] == [3, 4, 5, 5] and found[-1] == expected[-1] == {"step": 5, "went_back_to": 2}
  examples = lambda line: [sorted(part[1:] for part in parts) for batch in line["row, example, piece by source"] for parts in batch.values()]
  assert all(examples(a) == examples(b) for a, b in zip(found[:3], expected[:3]))  # in rows dealt to other ranks
  kinds = tuple(f"watch/{kind}" for kind in ("step", "activation", "param", "gradient"))
  found, expected = ([{k: v for k, v in r.items() if k.startswith(kinds)} for r in metrics.read(w) if "watch/step" in r] for w in (moved, alone))
  assert len(found) == len(expected) > 3
  for a, b in zip(found, expected):
    assert a == pytest.approx(b, rel=1e-3) and a["watch/gradient_norm/all"] > 0
