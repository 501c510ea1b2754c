"""The sharded train step of the 3B, compiled for each chip: how its weights and gradients travel.

What a plain layout gives depends on the slice: on some, gathers come out as synchronous all-reduces of whole weights
and gradients. `sharding.rules.gathered` and `sharding.chips` are there so that none does.
"""

import dataclasses
import math
import os

import jax
import pytest

from bluelm_jax.models import presets
from bluelm_jax.training import defaults
from bluelm_jax.training import memory
from bluelm_jax.training.precompile import compile as compile_lib
from bluelm_jax.training.precompile import hlo
from bluelm_jax.training.precompile import topology
from tests.bench import machine

WHOLE = bool(os.environ.get("AOT_WHOLE"))  # `make aot`
SLICES = {  # weights over as many ranks as in configs/layouts
    "v5e:8x8": dict(data=4, fsdp=16), "v5p:4x4x4": dict(data=4, fsdp=16), "v6e:8x8": dict(data=4, fsdp=16), "h100:8": dict(data=1, fsdp=8)}
MLP = 2560 * 7296  # a layer's widest weight


@pytest.mark.parametrize("name,tiles", [("v5e:8x8", 0)] + [(name, 10) for name in SLICES] * WHOLE)
def test_weights_are_gathered_and_gradients_scattered_in_the_memory_foretold(name, tiles):
  """Of text alone it compiles in half the time."""
  try:
    devices = topology.devices(name)
  except ValueError as missing:
    pytest.skip(str(missing))
  config = defaults.load(f"{machine.ROOT}/configs/layouts/joint_4k.py:v5e_256")
  config.mesh.update(SLICES[name])
  config.data.rows, config.data.tile_slots = len(devices), tiles
  config.data.accumulate, config.watch.every = ((0, 1),), 0  # one program, of a batch and its update
  compiled = compile_lib.compile_stage(config, devices)
  peak = compiled.program.memory_analysis().peak_memory_in_bytes
  assert memory.budget(config, compiled.described.mesh).total == pytest.approx(peak, rel=0.15)
  found = hlo.collectives(compiled.program.as_text())
  ranks = SLICES[name]["fsdp"]

  gathers = [c for c in found if c.kind == "all-gather" and c.size == 2 * MLP]  # bfloat16
  assert any(c.overlap > 0 for c in gathers), hlo.table(found, 2**20)
  assert any(c.kind == "reduce-scatter" and c.size in (2 * MLP // ranks, 4 * MLP // ranks) for c in found), hlo.table(found, 2**20)
  whole = set()  # bytes of a gradient, of one layer and of all, that no rank should hold
  for path, x in compiled.described.state.trainable.items():
    layer = math.prod(x.shape[1:] if "layers" in path else x.shape)
    whole |= {n * size for n in (layer, math.prod(x.shape)) for size in (2, 4) if layer >= 2**20}
  assert not [c for c in found if c.kind == "all-reduce" and c.size in whole], hlo.table(found, 2**20)


@pytest.mark.parametrize("name", ["h100:8", "v5e:2x4"])
def test_the_output_table_is_gathered_once(name, monkeypatch):
  """Left to itself, a compiler gathers each chunk of it again for the logits, their recomputation and the gradients."""
  try:
    devices = topology.devices(name)
  except ValueError as missing:
    pytest.skip(str(missing))
  whole = presets.bluelm_2_5_3b()
  shallow = dataclasses.replace(whole, decoder=dataclasses.replace(whole.decoder, num_layers=1))  # compiles in less time
  monkeypatch.setitem(presets.PRESETS, "bluelm_2_5_3b", lambda: shallow)
  config = defaults.load(f"{machine.ROOT}/configs/layouts/joint_4k.py:h100_8")
  config.data.rows, config.data.length, config.data.tile_slots = len(devices), 512, 0
  config.data.accumulate, config.watch.every, config.execution.remat = ((0, 1),), 0, "full"
  found = hlo.collectives(compile_lib.compile_stage(config, devices).program.as_text())
  table = 2 * shallow.decoder.vocab_size * shallow.decoder.embed_dim  # bfloat16
  gathers = [c for c in found if c.kind == "all-gather" and c.size in (table, table // config.loss_chunks)]
  assert sum(c.size * c.trips for c in gathers) == table, hlo.table(found, 2**20)
