"""Compiles the train step of a stage for chips that are not here, and says what it will cost.

  python -m bluelm_jax.precompile --config=configs/layouts/joint_4k.py:v5p_256 --topology=v5p:4x8x8 [--report=out.html]
  python -m bluelm_jax.precompile --config=configs/layouts/joint_4k.py:v5p_256 --topology=v5p:4x8x8 --budget

With --budget nothing is compiled: the memory under every remat policy and ZeRO stage is predicted, in seconds.
Exit code 3: it does not fit the chips' memory.
"""

import sys

from absl import flags
from ml_collections import config_flags

from bluelm_jax import door

_CONFIG = config_flags.DEFINE_config_file("config", None, "A stage or a layout: configs/layouts/NAME.py[:argument].", lock_config=True)
_TOPOLOGY = flags.DEFINE_string("topology", None, "A TPU slice (v5e:16x16, v5p:4x8x8, v6e:16x16) or h100:NUMBER.")
_BUDGET = flags.DEFINE_bool("budget", False, "Only predict the memory of a device, for every remat policy.")
_REPORT = flags.DEFINE_string("report", None, "Also write an HTML page here.")

NO_ROOM = 3


def main(argv):
  del argv
  import jax  # after the flags: --help stays fast

  jax.config.update("jax_platforms", "cpu")  # nothing runs; the chips are described
  from bluelm_jax.sharding import chips
  from bluelm_jax.training import accumulate
  from bluelm_jax.training import memory
  from bluelm_jax.training import stage
  from bluelm_jax.training.precompile import compile as compile_lib
  from bluelm_jax.training.precompile import estimate
  from bluelm_jax.training.precompile import report
  from bluelm_jax.training.precompile import topology

  config = _CONFIG.value
  devices = topology.devices(_TOPOLOGY.value)
  chip = chips.chip(devices[0].device_kind)
  if _BUDGET.value:
    _leave([report.budgets(memory.alternatives(config, devices), chip)], fits=True)
  try:
    compiled = compile_lib.compile_stage(config, devices)
  except jax.errors.JaxRuntimeError as e:
    if "RESOURCE_EXHAUSTED" not in str(e):
      raise
    print(f"does not fit {len(devices)} {chip.name}: {str(e).splitlines()[0]}")
    print("\n".join(["largest buffers:", *report.largest_buffers(str(e))]))
    sys.exit(NO_ROOM)
  found = estimate.estimate(compiled, config, stage.described_model(config), chip)
  mesh = ", ".join(f"{axis} {size}" for axis, size in compiled.described.mesh.shape.items() if size > 1)
  title = f"{config.name} ({config.preset}) on {len(devices)} {chip.name}: {mesh}"
  if compiled.described.sums:
    title += f"; one batch of a step of up to {accumulate.most(config.data.accumulate)}"
  _leave(report.sections(found, memory.budget(config, compiled.described.mesh), title, compiled.seconds), found.memory.fits)


def _leave(parts, fits: bool):
  from bluelm_jax.training.precompile import report

  print(report.text(parts))
  if _REPORT.value:
    report.page(parts, _REPORT.value)
  sys.exit(0 if fits else NO_ROOM)


if __name__ == "__main__":
  door.run(main, required=("config", "topology"))
