"""The stage configs/stages/joint.py at true size, laid out for other clusters: its updates are made of as many rows, taken fewer at a time.

  python -m bluelm_jax.precompile --config=configs/layouts/joint_4k.py:v5p_256 --topology=v5p:4x8x8
  python -m bluelm_jax.precompile --config=configs/layouts/joint_4k.py:v5e_256 --topology=v5e:16x16
  python -m bluelm_jax.precompile --config=configs/layouts/joint_4k.py:h100_1 --topology=h100:1
  python -m bluelm_jax.precompile --config=configs/layouts/joint_4k.py:h100_8 --topology=h100:8
  python -m bluelm_jax.precompile --config=configs/layouts/joint_4k.py:h100_64 --topology=h100:64
"""

import pathlib

from bluelm_jax.training import defaults

# The slice, rows of 4096 tokens in a step, and the mesh. Weights are split over fewer ranks than there are devices:
# over 64 ranks of a v5p the vision tower's gradients, 18 columns to a rank, are all-reduced and not scattered.
LAYOUTS = {
    "v5e_256": dict(topology="v5e:16x16", rows=256, remat="full", mesh=dict(data=16, fsdp=16)),
    "v5p_256": dict(topology="v5p:4x8x8", rows=512, remat="dots_no_batch", mesh=dict(data=16, fsdp=16)),
    "h100_1": dict(topology="h100:1", rows=2, remat="full", mesh=dict(fsdp=1)),  # beside the sums of gradients more would not fit
    **{f"h100_{n}": dict(topology=f"h100:{n}", rows=4 * n, remat="dots_no_batch", mesh=dict(data=n // 8, fsdp=8)) for n in (8, 16, 32, 64)},
}


def get_config(layout: str = "v5p_256"):
  if layout not in LAYOUTS:
    raise ValueError(f"layout {layout!r} is unknown; use {', '.join(LAYOUTS)}")
  found = LAYOUTS[layout]
  c = defaults.load(f"{pathlib.Path(__file__).parents[1]}/stages/joint.py:bluelm_2_5_3b")
  tiles = c.data.tile_slots * c.mesh.data * c.mesh.fsdp // c.data.rows  # of a row
  c.name = f"joint_4k_{layout}"
  defaults.regroup(c, found["rows"])
  c.mesh.update({"data": 1, **found["mesh"]})
  c.data.tile_slots = tiles * c.data.rows // (c.mesh.data * c.mesh.fsdp)
  c.execution.remat = found["remat"]
  return c
