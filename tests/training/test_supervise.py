"""A recipe's process that is killed, hangs, finds its newest checkpoint cut, or is asked to end: nothing is lost."""

import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

import bluelm_jax
from bluelm_jax import supervise
from bluelm_jax.training import goodput
from bluelm_jax.training import metrics
from tests import doors
from tests.training import faulty


def run(workdir, *flags):
  return doors.run("tests.training.faulty", f"--workdir={workdir}", *flags)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  """A run to which nothing happened."""
  workdir = tmp_path_factory.mktemp("whole")
  out = run(workdir)
  assert out.returncode == 0, out.stderr
  assert "text: goodput" in out.stderr and "recipe: its process" not in out.stderr
  return workdir / "1-text"


def losses(directory):
  return [(r["step"], r["loss"]) for r in metrics.read(directory)]


def test_whatever_happens_the_losses_are_the_same(whole, tmp_path):
  flags = "--faults=stop@3,cut@7,term@9", "--deadline=15"
  out = run(tmp_path, *flags)
  directory, errors = tmp_path / "1-text", out.stderr
  assert out.returncode == supervise.GO_ON_LATER, errors
  assert "s after step 3 and was killed; in 1 s" in errors and "its process was ended by SIGKILL after step 7; in 1 s" in errors
  assert errors.count("warning: checkpoint") == 1 and errors.splitlines()[-1].startswith("stopped: text was asked to end and saved step 10 of 12; run the same")
  assert len(list((directory / "damaged").iterdir())) == 1
  again = run(tmp_path, *flags)
  assert again.returncode == 0, again.stderr
  assert losses(directory) == losses(whole) and [s for s, _ in losses(whole)] == list(range(1, faulty.STEPS + 1))
  found, expected = (bluelm_jax.load_pretrained(d)[1] for d in (directory, whole))
  assert jax.tree.all(jax.tree.map(np.array_equal, found, expected))
  seconds = goodput.read(directory)
  assert seconds["restart"] > 15 and seconds["lost"] > 0 and seconds["restore"] > 0  # of the restart the deadline, and three pauses
  assert goodput.read(whole)["restart"] == goodput.read(whole)["lost"] == 0


def test_three_lives_without_a_new_checkpoint_are_the_last(tmp_path):
  (tmp_path / "1-text/checkpoints/2").mkdir(parents=True)  # an old one
  out = run(tmp_path, "--faults=crash@0,kill@0,crash@0,kill@0")
  assert out.returncode == 1
  assert out.stderr.count("RuntimeError: as it was told to") == 2 and out.stderr.count("starts again") == 2
  assert "was ended by SIGKILL before a step; in 2 s" in out.stderr
  assert "error: 3 times in a row the recipe's process ended without a new checkpoint, now because it left with code 1" in out.stderr.splitlines()[-1]


@pytest.mark.parametrize("fault,code", [("interrupt", 130), ("term", supervise.GO_ON_LATER), ("mistake", 2)])
def test_what_is_not_tried_again(fault, code, tmp_path):
  out = run(tmp_path, f"--faults={fault}@0")
  assert out.returncode == code and "starts again" not in out.stderr, out.stderr


def test_a_process_ends_with_its_watcher(tmp_path):
  """No second writer is left in the workdir; the pipe closes when the child, which would sleep for 30 s, is gone too."""
  started = time.monotonic()
  assert run(tmp_path, "--faults=orphan@0").returncode == -signal.SIGKILL and time.monotonic() - started < 25


def test_the_watcher_is_light():
  code = "import sys\nfrom bluelm_jax import recipe\nassert not {'jax', 'flax', 'orbax', 'numpy'} & set(sys.modules), 'heavy'\n"
  out = subprocess.run([sys.executable, "-c", code], cwd=faulty.ROOT, capture_output=True, text=True)
  assert out.returncode == 0, out.stderr
