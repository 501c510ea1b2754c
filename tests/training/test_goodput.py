"""Every second has a kind, and steps that were made twice count once."""

import json
import time
import types

import pytest

from bluelm_jax import supervise
from bluelm_jax.training import goodput
from bluelm_jax.training import loop


def test_seconds_add_up(tmp_path, monkeypatch):
  now = [1000.0]
  monkeypatch.setattr(time, "time", lambda: now[0])
  clock = goodput.Clock(tmp_path, supervise.Life(began=990.0))
  for kind, seconds in (("start", 0), ("compile", 5), ("steps", 3), ("input", 1), ("steps", 4), ("checkpoint", 2)):
    now[0] += seconds
    assert clock.mark(kind) == seconds + 10 * (kind == "start")
  clock.write(2)
  found = goodput.read(tmp_path)
  assert found == dict.fromkeys(goodput.KINDS, 0.0) | {"start": 10, "compile": 5, "steps": 7, "input": 1, "checkpoint": 2}
  assert goodput.line([tmp_path, tmp_path]) == "goodput 28.0% of 50 s (start 20.0 s, compile 10.0 s, input 2.0 s, checkpoint 4.0 s)"
  assert goodput.line([tmp_path / "nothing"]) == "no goodput recorded"


def test_what_is_made_again_after_going_back_is_lost(tmp_path, monkeypatch):
  now = [0.0]
  monkeypatch.setattr(time, "time", lambda: now[0])
  clock = goodput.Clock(tmp_path, supervise.Life(began=0.0))
  for seconds, step, back in ((3, 1, None), (4, 3, 1), (2, 2, None), (6, 5, None)):
    now[0] += seconds
    clock.mark("steps")
    clock.write(step)
    if back:
      clock.went_back(back)
      clock.write(back)
  assert goodput.read(tmp_path) == dict.fromkeys(goodput.KINDS, 0.0) | {"steps": 11, "lost": 4}


@pytest.mark.parametrize("lives,expected", [
    # (began, restarted, (time, step, seconds of steps) of each line)
    ([(0, False, [(1, 0, 0), (5, 4, 4), (8, 7, 7)]), (20, True, [(21, 4, 0), (25, 8, 4)])], {"steps": 8, "lost": 3, "restart": 12}),
    ([(0, False, [(1, 0, 0), (5, 4, 4)]), (99, False, [(99, 4, 0), (103, 8, 4)])], {"steps": 8, "lost": 0, "restart": 0}),  # begun by hand
    # The third life goes back behind the second's start: its checkpoint was damaged.
    ([(0, False, [(0, 0, 0), (2, 2, 2), (4, 4, 4)]), (5, True, [(5, 4, 0), (7, 6, 2)]), (8, True, [(8, 2, 0), (9, 3, 1)])], {"steps": 3, "lost": 4, "restart": 2}),
])
def test_what_was_made_again_is_lost(lives, expected, tmp_path):
  lines = [
      json.dumps({"began": began, "restarted": restarted, "time": at, "step": step, "seconds": {"steps": steps}})
      for began, restarted, rows in lives for at, step, steps in rows]
  (tmp_path / goodput.FILE_NAME).write_text("\n".join([*lines, "{cut"]))
  assert {k: v for k, v in goodput.read(tmp_path).items() if k in expected} == expected


@pytest.mark.parametrize("ready,lost", [(None, 3.0), (True, 3.0), (False, 0.0)])
def test_waiting_for_a_batch_is_lost_where_the_devices_wait_too(ready, lost, tmp_path, monkeypatch):
  now = [0.0]
  monkeypatch.setattr(time, "time", lambda: now[0])
  clock = goodput.Clock(tmp_path, supervise.Life(began=0.0))

  def batches():
    now[0] += 3.0
    yield "batch"

  under_way = None if ready is None else types.SimpleNamespace(is_ready=lambda: ready)
  now[0] += 1.0
  assert loop.next_batch(batches(), under_way, clock) == ("batch", lost)
  assert loop.next_batch(iter(()), under_way, clock) == (None, 0.0)
  clock.mark("steps")
  clock.write(1)
  assert goodput.read(tmp_path) == dict.fromkeys(goodput.KINDS, 0.0) | {"steps": 4.0 - lost, "input": lost}
