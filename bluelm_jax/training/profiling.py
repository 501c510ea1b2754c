"""Traces of a stage's steps, asked for while it runs."""

import pathlib
import sys

import jax

from bluelm_jax.training import together

REQUEST = "profile"  # a file in the workdir: a number of steps, or nothing
DIRECTORY = "profiles"
_STEPS = 5  # of an empty request


class Profiles:
  """Traces steps with jax.profiler into `workdir/profiles/STEP`, STEP being the first of them; each of several processes into a folder of its own.

  A file named `profile` in the workdir asks for a trace at any time, which is looked for at step 0 and at
  every log line and removed. Call `follow` before every step and `close` at the end.
  """

  def __init__(self, config, workdir):
    self._workdir, self._every = pathlib.Path(workdir), config.log_every
    self._directory, self._end = None, 0

  def follow(self, step: int, state) -> None:
    """Begins or ends a trace where one is due; `step` is the last that was made, `state` what it left."""
    if self._directory and step == self._end:
      jax.block_until_ready(state.step)  # steps that are still computed belong to the trace
      self._stop()
    if self._directory:
      return
    if step % self._every == 0 and (steps := together.first_says(self._requested())):
      self._start(step, steps)

  def close(self) -> None:
    """Ends a trace that is longer than the stage."""
    if self._directory:
      self._stop()

  def _requested(self) -> int:
    """Steps that the first process finds asked for; 0 for none. What is no number is refused in words alone: the run goes on."""
    file = self._workdir / REQUEST
    if jax.process_index() or not file.is_file():
      return 0
    text = file.read_text(errors="replace").strip() or str(_STEPS)
    file.unlink()
    if text.isdecimal() and 0 < int(text) < 2**31:
      return int(text)
    print(f"warning: {file} asked for {text[:40]!r}; write a number of steps over 0 into it", file=sys.stderr)
    return 0

  def _start(self, step: int, steps: int) -> None:
    own = f"process-{jax.process_index()}" if jax.process_count() > 1 else ""
    self._directory, self._end = self._workdir / DIRECTORY / str(step + 1) / own, step + steps
    jax.profiler.start_trace(self._directory)

  def _stop(self) -> None:
    jax.profiler.stop_trace()
    if not jax.process_index():
      print(f"a trace of steps is in {self._directory}; look at it with xprof --logdir={self._directory}", file=sys.stderr)
    self._directory = None
