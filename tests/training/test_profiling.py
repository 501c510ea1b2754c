"""Which steps are traced, and on whose word."""

import jax
import pytest

from bluelm_jax.training import profiling
from bluelm_jax.training import state
from tests.training import faulty


@pytest.fixture
def traced(monkeypatch):
  """[first step, last step] of every trace."""
  found = []
  monkeypatch.setattr(jax.profiler, "start_trace", lambda directory: found.append([int(directory.name)]))
  monkeypatch.setattr(jax.profiler, "stop_trace", lambda: found[-1].append(None))
  return found


def follow(workdir, traced, first, last, requests=()):
  """Steps after `first` up to `last`; requests are (step, text)."""
  c = faulty.config()
  c.log_every = 2
  profiles = profiling.Profiles(c, workdir)
  for step in range(first, last):
    for at, text in requests:
      if at == step:
        (workdir / profiling.REQUEST).write_text(text)
    profiles.follow(step, state.TrainState(jax.numpy.int32(step), {}, {}, ()))
    for trace in traced:
      trace[1:] = [step] if trace[1:] == [None] else trace[1:]  # ended before the next step
  profiles.close()
  for trace in traced:
    trace[1:] = [last] if trace[1:] == [None] else trace[1:]


def test_on_request(traced, tmp_path, capsys):
  """Looked for at every second step; one that comes while another is made waits."""
  follow(tmp_path, traced, 0, 20, requests=[(1, "3"), (4, "")])
  follow(tmp_path, traced, 8, 12, requests=[(10, "4")])  # longer than the stage
  assert traced == [[3, 5], [7, 11], [11, 12]] and not (tmp_path / profiling.REQUEST).exists()
  follow(tmp_path, traced, 20, 24, requests=[(20, "some"), (22, "0")])
  assert len(traced) == 3 and capsys.readouterr().err.count("write a number of steps over 0 into it") == 2
