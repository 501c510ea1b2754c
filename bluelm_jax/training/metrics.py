"""Where numbers go: a JSONL file, TensorBoard events and one line on the terminal."""

import importlib
import json
import math
import pathlib
import sys
import time
from typing import Sequence

import jax

from bluelm_jax.training import jsonl
from bluelm_jax.training import utilization
from bluelm_jax.training.flops import Flops

_FILE_NAME = "metrics.jsonl"


def _tensorboard():
  """tensorboardX, kept from importing torch where there is one: for the name of a type it would take seconds of every start.

  Nothing else may be importing torch meanwhile: at the start no other thread does.
  """
  hidden = "torch" not in sys.modules
  if hidden:
    sys.modules["torch"] = None  # an ImportError, which it expects
  try:
    return importlib.import_module("tensorboardX")
  finally:
    if hidden:
      del sys.modules["torch"]


tensorboardX = _tensorboard()


class Metrics:
  """Writes scalars of a stage and keeps its clock.

  Args:
    meter: makes rates of the steps' FLOPs; None where they are not counted.

  Rates are over the wall time since the last line, saving and input waits included, compiling not. Of several
  processes the first writes.
  """

  def __init__(self, workdir, name: str, steps: int, meter: utilization.Meter | None = None):
    self._writes = jax.process_index() == 0
    self._path = pathlib.Path(workdir) / _FILE_NAME
    if self._writes:
      jsonl.keep(self._path)  # a full disk may have left a line unfinished
      self._file = open(self._path, "a", buffering=1)
      self._board = tensorboardX.SummaryWriter(f"{workdir}/tensorboard", flush_secs=10)
    self._name, self._steps, self._meter = name, steps, meter
    self._since, self._watched = None, {}

  def start(self, step: int) -> None:
    """Starts the clock; call it after the first step has compiled."""
    self._since, self._step = time.monotonic(), step

  def watch(self, step: int, values: dict[str, float]) -> None:
    """Takes what was seen inside a step: TensorBoard gets it all, JSONL in its next line the newest."""
    if self._writes:
      self._watched = {"watch/step": step, **values}
      for key, value in values.items():
        self._board.add_scalar(key, value, step)

  def write(self, step: int, values: dict, tokens: list[int], slots: int, flops: Sequence[Flops] = ()) -> None:
    """Logs `values`, without a loss where no step counts; of every step since the last line, `tokens` were not padding, of `slots` in all, and took `flops`."""
    if not self._writes:
      return
    # The first line's steps include the one that compiled, before the clock started: it counts in no rate.
    timed = step - self._step
    seconds = time.monotonic() - self._since
    values = {"step": step, **{k: float(v) for k, v in values.items()}, "padding": 1.0 - sum(tokens) / slots}
    rate, left = "compiled", "-"
    if timed:
      values |= {"tokens_per_second": sum(tokens[-timed:]) / max(seconds, 1e-9), "seconds_per_step": seconds / timed}
      eta = int(values["seconds_per_step"] * (self._steps - step))
      rate, left = f"{values['tokens_per_second']:,.0f} tok/s", f"{eta // 60}:{eta % 60:02d}"
      if self._meter:
        rates = self._meter.rates(flops[-timed:], seconds)
        values |= rates
        rate += f", {utilization.words(rates)}"
    watched, self._watched = self._watched, {}
    self._put(step, values, watched)
    print(
        f"{self._name:>9} step {step:>5}/{self._steps} | loss {values.get('loss', math.nan):.4f} | {rate} | padding {values['padding']:.1%} | eta {left}",
        file=sys.stderr, flush=True)
    self.start(step)

  def evaluated(self, step: int, values: dict, seconds: float) -> None:
    """Logs what `online.Evaluation` found, as eval/..., and leaves its time, `seconds`, out of the rates."""
    if self._writes:
      self._put(step, {"step": step, **{f"eval/{k}": v for k, v in values.items()}})
      by_source = ", ".join(f"{k.removeprefix('loss/')} {v:.4f}" for k, v in values.items() if k.startswith("loss/"))
      print(f"{self._name:>9} step {step:>5}/{self._steps} | held-out loss {values['loss']:.4f} | {by_source}", file=sys.stderr, flush=True)
    if self._since is not None:
      self._since += seconds

  def forget_after(self, step: int) -> None:
    """Drops the lines of later steps, which will be other steps; TensorBoard shows both."""
    if self._writes:
      self._file.close()
      jsonl.keep(self._path, step)
      self._file = open(self._path, "a", buffering=1)

  def _put(self, step: int, values: dict, beside: dict = {}) -> None:
    """To both; what stands `beside` TensorBoard has already."""
    line = {k: float(f"{v:.6g}") if isinstance(v, float) else v for k, v in {**values, **beside}.items()}
    self._file.write(json.dumps(line) + "\n")
    for key, value in values.items():
      self._board.add_scalar(key, value, step)

  def close(self) -> None:
    if self._writes:
      self._file.close()
      self._board.close()


def read(workdir) -> list[dict]:
  """The lines of a stage's metrics.jsonl, one a step: an evaluation joins its step's, and a resumed step replaces what it says again.

  Without a "loss" where no step since the line before counted.
  """
  lines = (pathlib.Path(workdir) / _FILE_NAME).read_text().splitlines()
  by_step = {}
  for line in lines:
    record = json.loads(line)
    by_step[record["step"]] = by_step.get(record["step"], {}) | record
  return [by_step[s] for s in sorted(by_step) if "padding" in by_step[s]]  # others are evaluations of steps without a line
