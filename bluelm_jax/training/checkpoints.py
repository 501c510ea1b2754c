"""Orbax checkpoints of a stage: parameters, optimizer and data state under `workdir/checkpoints`."""

import pathlib

import jax
import orbax.checkpoint as ocp

from bluelm_jax.interop import load
from bluelm_jax.training.optimizer import paths
from bluelm_jax.training.state import TrainState


class Checkpoints:
  """Asynchronous saves, the last `keep` of them; each commits by a rename."""

  def __init__(self, workdir, keep: int):
    options = ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=True)
    self._manager = ocp.CheckpointManager(pathlib.Path(workdir).absolute() / "checkpoints", options=options)

  def save(self, state: TrainState, data_state: dict) -> None:
    step = int(state.step)
    if step == self._manager.latest_step():
      return
    self._manager.save(step, args=ocp.args.Composite(
        params=ocp.args.StandardSave(state.params),
        optimizer=ocp.args.StandardSave({"step": state.step, "opt_state": state.opt_state}),
        data=ocp.args.JsonSave(data_state)))

  def latest_step(self) -> int | None:
    return self._manager.latest_step()

  def restore(self, like: TrainState) -> tuple[TrainState, dict]:
    """The newest state in the shardings of `like`, and the data state."""
    abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
    step = self._manager.latest_step()
    with load.reading(self._manager.directory / str(step)):
      restored = self._manager.restore(step, args=ocp.args.Composite(
          params=ocp.args.StandardRestore(abstract.params),
          optimizer=ocp.args.StandardRestore({"step": abstract.step, "opt_state": abstract.opt_state}),
          data=ocp.args.JsonRestore()))
    flat = paths(restored.params)
    return TrainState(
        step=restored.optimizer["step"],
        trainable={p: flat[p] for p in like.trainable},
        frozen={p: flat[p] for p in like.frozen},
        opt_state=restored.optimizer["opt_state"],
    ), restored.data

  def wait(self) -> None:
    self._manager.wait_until_finished()

  def close(self) -> None:
    self._manager.close()
