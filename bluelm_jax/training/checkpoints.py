"""Orbax checkpoints of a stage: parameters, optimizer and data state under `workdir/checkpoints`."""

import asyncio
import contextlib
import errno
import pathlib
import sys
import time

import jax
from jax.experimental import multihost_utils
import orbax.checkpoint as ocp

from bluelm_jax.interop import load
from bluelm_jax.interop import manifest
from bluelm_jax.training import record
from bluelm_jax.training import spikes
from bluelm_jax.training import together
from bluelm_jax.training.optimizer import paths
from bluelm_jax.training.state import TrainState


class _Listed(ocp.path.atomicity.AtomicRenameTemporaryPath):
  """A checkpoint being written, whose manifest is written just before the rename that commits both."""

  async def finalize(self):
    if self.get_final().name.isdigit():  # the whole checkpoint, no item of it
      await asyncio.to_thread(manifest.write, self.get())
    await super().finalize()


class _Manager(ocp.CheckpointManager):
  """Leaves preemption to the loop."""

  def reached_preemption(self, step: int) -> bool:
    """Never: orbax would ask jax by steps where `preemption` asks by calls, and a SIGTERM that came between would wait for a number long past."""
    return False


class Checkpoints:
  """Asynchronous saves; each commits by a rename, with the checksums of its files.

  Args:
    keep: the last so many stay.
    keep_every: those of multiples of this step stay too; 0 for none.
  """

  def __init__(self, workdir, keep: int, keep_every: int = 0):
    load.hush()
    self._workdir = pathlib.Path(workdir).absolute()
    options = ocp.CheckpointManagerOptions(
        max_to_keep=keep, keep_period=keep_every or None, enable_async_checkpointing=True, cleanup_tmp_directories=True, temporary_path_class=_Listed)
    self._manager = _Manager(self._workdir / "checkpoints", options=options)

  def save(self, state: TrainState, data_state: dict) -> None:
    """Begins to save.

    Raises:
      ValueError: the disk is full, perhaps since the save before; what was whole stays so.
    """
    step = int(state.step)
    if step == self._manager.latest_step():
      return
    # As numbers beside the arrays, so that checkpoints without them, written by an earlier version, restore too.
    guard = {} if state.guard is None else {"spikes": ocp.args.JsonSave({k: v.item() for k, v in jax.device_get(state.guard)._asdict().items()})}
    with self._room():
      self._manager.save(step, args=ocp.args.Composite(
          params=ocp.args.StandardSave(state.params),
          optimizer=ocp.args.StandardSave({"step": state.step, "opt_state": state.opt_state}),
          data=ocp.args.JsonSave(data_state), **guard))

  def latest_step(self) -> int | None:
    return self._manager.latest_step()

  def steps(self) -> list[int]:
    return sorted(self._manager.all_steps())

  def remove_after(self, step: int) -> None:
    for later in self.steps():
      if later > step:
        self._manager.delete(later)

  def restore(self, like: TrainState, until: int | None = None) -> tuple[TrainState, dict]:
    """The newest whole state, of those up to a step, in the shardings of `like`, and the data state.

    Newer ones that are damaged are named on stderr and moved to `workdir/damaged`.

    Raises:
      ValueError: none is whole.
    """
    problems = {}
    for step in reversed([s for s in self.steps() if until is None or s <= until]):
      problem = self._problem(step)
      if problem is None:
        try:
          found = self._read(step, like)
        except ValueError as e:  # no manifest, written by an earlier version
          if jax.process_count() > 1:  # the others may have read their parts
            raise
          problem = str(e)
        else:
          self._set_aside(problems, step)
          return found
      problems[step] = problem
    newest = max(problems)
    raise ValueError(
        f"no checkpoint of {self._workdir} is whole ({newest}: {problems[newest]}); put a copy of one there, or choose another --workdir")

  def _problem(self, step: int) -> str | None:
    """What is wrong with a checkpoint's files, the same for all processes: the first reads them."""
    problem = manifest.problem(self._manager.directory / str(step)) if jax.process_index() == 0 else None
    return (problem or "damaged") if together.first_says(problem is not None) else None

  def _read(self, step: int, like: TrainState) -> tuple[TrainState, dict]:
    abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
    guarded = (self._manager.directory / str(step) / "spikes").exists()
    with load.reading(self._manager.directory / str(step)):
      restored = self._manager.restore(step, args=ocp.args.Composite(
          params=ocp.args.StandardRestore(abstract.params),
          optimizer=ocp.args.StandardRestore({"step": abstract.step, "opt_state": abstract.opt_state}),
          data=ocp.args.JsonRestore(),
          **({"spikes": ocp.args.JsonRestore()} if guarded else {})))
    flat = paths(restored.params)
    return TrainState(
        step=restored.optimizer["step"],
        trainable={p: flat[p] for p in like.trainable},
        frozen={p: flat[p] for p in like.frozen},
        opt_state=restored.optimizer["opt_state"],
        guard=spikes.place(restored.spikes if guarded else jax.device_get(spikes.start())._asdict(), like.guard),
    ), restored.data

  def _set_aside(self, problems: dict[int, str], good: int) -> None:
    """Moves damaged checkpoints out of the way of those that will be saved at their steps."""
    aside = self._workdir / "damaged"
    for step, problem in problems.items() if jax.process_index() == 0 else ():
      aside.mkdir(exist_ok=True)
      place = aside / f"{step}-{time.time():.0f}"
      (self._workdir / "checkpoints" / str(step)).rename(place)
      print(f"warning: checkpoint {step} is damaged ({problem}) and moved to {place}; going on from {good}", file=sys.stderr)
    if problems and jax.process_count() > 1:
      multihost_utils.sync_global_devices("set aside")
    self._manager.reload()

  @contextlib.contextmanager
  def _room(self):
    """Makes one ValueError of a full disk, wherever orbax was writing."""
    try:
      yield
      return
    except Exception as e:
      if not _full(e):
        raise
    raise ValueError(
        f"no room on the disk of {self._workdir}; make some and run the same command again, which goes on from step {record.latest_step(self._workdir) or 0}")

  def wait(self) -> None:
    """Until what was saved is committed; raises as `save` does."""
    with self._room():
      self._manager.wait_until_finished()

  def close(self) -> None:
    with self._room():
      self._manager.close()


def _full(error: BaseException | None) -> bool:
  return error is not None and (
      getattr(error, "errno", None) == errno.ENOSPC or "No space left on device" in str(error) or _full(error.__cause__ or error.__context__))
