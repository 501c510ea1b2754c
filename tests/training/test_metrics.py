"""Rates are of the steps that the clock saw."""

import time

from bluelm_jax.training import metrics


def test_the_compiled_step_counts_in_no_rate(tmp_path, monkeypatch, capsys):
  now = [100.0]
  monkeypatch.setattr(time, "monotonic", lambda: now[0])
  writer = metrics.Metrics(tmp_path, "text", 6)
  writer.start(1)  # the first step has compiled
  writer.write(1, {"loss": 1.0}, [50], 100)  # and is all there is to log yet
  assert "| compiled | padding 50.0% | eta -" in capsys.readouterr().err
  writer.start(1)
  now[0] += 2
  writer.write(3, {"loss": 1.0}, [50, 60, 80], 300)  # as with log_every=3: two of the three steps were timed
  assert "| 70 tok/s |" in capsys.readouterr().err
  now[0] += 3
  writer.write(6, {"loss": 1.0}, [10, 20, 30], 300)
  writer.close()
  first, second, third = metrics.read(tmp_path)
  assert "tokens_per_second" not in first and first["padding"] == 0.5
  assert second["tokens_per_second"] == 70 and second["seconds_per_step"] == 1 and abs(second["padding"] - 110 / 300) < 1e-6
  assert third["tokens_per_second"] == 20 and third["seconds_per_step"] == 1


def test_an_unfinished_line_is_dropped(tmp_path):
  """As a full disk leaves it; the next line stands alone."""
  (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0, "padding": 0.0}\n{"step": 2, "lo')
  writer = metrics.Metrics(tmp_path, "text", 6)
  writer.start(1)
  writer.write(2, {"loss": 1.0}, [50], 100)
  writer.close()
  assert [(r["step"], r["loss"]) for r in metrics.read(tmp_path)] == [(1, 2.0), (2, 1.0)]
