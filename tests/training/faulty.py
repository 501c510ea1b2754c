"""A recipe of one tiny stage under its watcher, to each of whose lives something happens.

  python -m tests.training.faulty --workdir=DIR [--faults=kill@3,stop@5]    # in the first life, in the second
"""

import os
import pathlib
import signal
import time

from absl import flags

from bluelm_jax import door
from bluelm_jax import process
from bluelm_jax import supervise
from bluelm_jax.training import defaults

ROOT, STEPS = pathlib.Path(__file__).parents[2], 12

_WORKDIR = flags.DEFINE_string("workdir", None, "Of the recipe.")
_FAULTS = flags.DEFINE_list("faults", [], "One a life: kill, stop, crash, mistake, cut, term, interrupt or orphan, at a step; at 0 before jax is imported.")
_HOST = flags.DEFINE_integer("host", None, "Of two that train together.")
_COORDINATOR = flags.DEFINE_integer("coordinator", None, "Port of the first of two hosts; without it there is one.")
_DEADLINE = flags.DEFINE_float("deadline", 600, "As the recipe's.")


def config():
  """A text stage without images, of a model that compiles in a second."""
  c = defaults.load(ROOT / "configs/stages/text.py:miniature")
  c.preset, c.optimizer.name, c.data.rows, c.data.length = "tiny", "adamw", 2, 64
  c.steps, c.log_every, c.checkpoint_every = STEPS, 1, 2
  return c


def add_preset():
  from bluelm_jax.models import config as config_lib
  from bluelm_jax.models import presets

  presets.PRESETS["tiny"] = lambda: config_lib.DecoderConfig(
      vocab_size=1152, num_layers=1, embed_dim=16, num_heads=2, num_kv_heads=1, head_dim=8, mlp_dim=24)


def happen(fault: str, stage: pathlib.Path, step: int):
  if fault in ("crash", "mistake"):
    raise (RuntimeError if fault == "crash" else ValueError)("as it was told to")
  if fault == "cut":  # the newest checkpoint, and away
    while not (newest := stage / "checkpoints" / str(step - 1)).is_dir():
      time.sleep(0.01)
    largest = max((p for p in newest.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:-100])
  to_watcher = {"term": signal.SIGTERM, "interrupt": signal.SIGINT, "orphan": signal.SIGKILL}
  if fault in to_watcher:
    os.kill(os.getppid(), to_watcher[fault])
    time.sleep(30 if fault == "orphan" else 3)
  else:
    os.kill(os.getpid(), signal.SIGSTOP if fault == "stop" else signal.SIGKILL)


def main(argv):
  del argv
  life, workdir = supervise.lives(_WORKDIR.value, _DEADLINE.value), pathlib.Path(_WORKDIR.value)
  fault, step = "", ""
  if _FAULTS.value:
    lived = workdir.with_name(f"{workdir.name}.lives")
    lived.write_text((lived.read_text() if lived.exists() else "") + ".")
    fault, _, step = (*_FAULTS.value, "")[min(len(lived.read_text()) - 1, len(_FAULTS.value))].partition("@")
  if step == "0":
    happen(fault, workdir, 0)
  if _COORDINATOR.value:
    import jax

    jax.config.update("jax_num_cpu_devices", 1)
    os.environ.update(JAX_COORDINATOR_ADDRESS=f"127.0.0.1:{_COORDINATOR.value}", JAX_NUM_PROCESSES="2", JAX_PROCESS_ID=str(_HOST.value))
    process.join_others()
  from bluelm_jax.training import metrics
  from bluelm_jax.training import recipe

  add_preset()
  write = metrics.Metrics.write

  def faulty_write(self, at, *rest):
    write(self, at, *rest)
    if fault and at == int(step):
      happen(fault, workdir / "1-text", at)

  metrics.Metrics.write = faulty_write
  c = config()
  recipe.run(type(c)({"order": ("text",), "stages": {"text": c}, "evaluation": {}}), workdir, life)


if __name__ == "__main__":
  door.run(main, required=("workdir",))
