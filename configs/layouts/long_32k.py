"""The last stage of configs/stages/decay.py, rows of 32K with context parallelism, laid out for other clusters: its updates are made of as many rows.

  python -m bluelm_jax.precompile --config=configs/layouts/long_32k.py:v5p_256 --topology=v5p:4x8x8
  python -m bluelm_jax.precompile --config=configs/layouts/long_32k.py:h100_64 --topology=h100:64
"""

import pathlib

from bluelm_jax.training import defaults

# The slice, rows of 32,768 tokens in a step, and the mesh.
LAYOUTS = {
    "v5p_256": dict(topology="v5p:4x8x8", rows=64, remat="dots_no_batch", mesh=dict(data=4, fsdp=16, context=4)),
    "h100_64": dict(topology="h100:64", rows=32, remat="dots_no_batch", mesh=dict(data=2, fsdp=8, context=4)),
}


def get_config(layout: str = "v5p_256"):
  if layout not in LAYOUTS:
    raise ValueError(f"layout {layout!r} is unknown; use {', '.join(LAYOUTS)}")
  found = LAYOUTS[layout]
  c = defaults.load(f"{pathlib.Path(__file__).parents[1]}/stages/decay.py:bluelm_2_5_3b_32k")
  tiles = c.data.tile_slots * c.mesh.data * c.mesh.fsdp // c.data.rows  # of a row
  c.name = f"long_32k_{layout}"
  defaults.regroup(c, found["rows"])
  c.mesh.update(found["mesh"])
  c.data.tile_slots = tiles * c.data.rows // (c.mesh.data * c.mesh.fsdp)
  c.execution.remat = found["remat"]
  return c
