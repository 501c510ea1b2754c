"""Stages that store a teacher's words of rows with images, and that follow them; also over processes with two devices each.

  python -m tests.training.taught --index=0 --processes=2 --port=PORT --jobs='[{"workdir": "DIR", "distill.teacher": "DIR", "mesh.fsdp": 2}]'
"""

import dataclasses
import json
import os

from absl import flags
import numpy as np

from bluelm_jax import door
from bluelm_jax import process
from bluelm_jax.data.tokenizer import ASSET
from bluelm_jax.interop import load
from bluelm_jax.interop import mapping
from bluelm_jax.models import presets
from bluelm_jax.training import defaults
from tests.sharding import step
from tests.training import programs
from tests.training import several  # noqa: F401  (its flags)

BATCHES = 2


def add_preset():
  presets.PRESETS["taught"] = student


def student():
  model_config = step.model_config()
  return dataclasses.replace(model_config, decoder=dataclasses.replace(model_config.decoder, num_layers=1))


def save_teacher(directory):
  """A wider model with random weights."""
  own, rng = student(), np.random.default_rng(0)
  teacher = dataclasses.replace(own, decoder=dataclasses.replace(own.decoder, embed_dim=80, mlp_dim=48))
  tensors = {p: mapping.in_memory((rng.standard_normal(s) * 0.2 + ("scale" in p)).astype(np.float32)) for p, s in load.param_shapes(teacher).items()}
  load.save(directory, teacher, tensors, {"tokenizer.json": ASSET.read_bytes()})


def config(**changes):
  """A stage that teaches, or with `distill.stored` one that follows; two rows for each of two data-parallel ranks."""
  c = defaults.stage()
  c.name, c.preset, c.steps, c.log_every, c.loss_chunks, c.data = "taught", "taught", BATCHES, 1, 3, step.config().data
  c.objective = "distill" if "distill.stored" in changes else "teach"
  c.data.rows, c.distill.top_k, c.distill.temperature = 4, 8, 2.0
  if c.objective == "distill":
    c.schedule.warmup, c.trainable = 0, ("decoder/final_norm/.*",)  # the least to differentiate
  c.update_from_flattened_dict(changes)
  return c


def main(argv):
  del argv
  import jax

  from bluelm_jax.training import stage

  jax.config.update("jax_num_cpu_devices", 2)
  given = flags.FLAGS
  os.environ.update(JAX_COORDINATOR_ADDRESS=f"127.0.0.1:{given.port}", JAX_NUM_PROCESSES=str(given.processes), JAX_PROCESS_ID=str(given.index))
  process.join_others()
  add_preset()
  programs.remember_all(setattr)
  for job in json.loads(given.jobs):
    workdir = job.pop("workdir")
    stage.run(config(**job), workdir)


if __name__ == "__main__":
  door.run(main, required=("jobs", "port"))
