"""Long-context training of BlueLM-2.5-3B at 32K with context parallelism, laid out for a cluster.

  python -m bluelm_jax.precompile --config=configs/layouts/long_32k.py:v5p_256 --topology=v5p:4x8x8
  python -m bluelm_jax.precompile --config=configs/layouts/long_32k.py:h100_64 --topology=h100:64
"""

from bluelm_jax.training import defaults

# The slice, rows of 32,768 tokens in a step, and the mesh.
LAYOUTS = {
    "v5p_256": dict(topology="v5p:4x8x8", rows=64, remat="dots_no_batch", mesh=dict(data=4, fsdp=16, context=4)),
    "h100_64": dict(topology="h100:64", rows=32, remat="dots_no_batch", mesh=dict(data=2, fsdp=8, context=4)),
}


def get_config(layout: str = "v5p_256"):
  if layout not in LAYOUTS:
    raise ValueError(f"layout {layout!r} is unknown; use {', '.join(LAYOUTS)}")
  c = defaults.stage()
  c.name, c.preset, c.yarn = f"long_32k_{layout}", "bluelm_2_5_3b", 8.0
  c.data.rows, c.data.length = LAYOUTS[layout]["rows"], 32768
  c.mesh.update(LAYOUTS[layout]["mesh"])
  c.data.tile_slots = 32 * c.data.rows // (c.mesh.data * c.mesh.fsdp)  # a fifth of the tokens: most data is long text
  c.layout = "striped"
  c.execution.context_parallel = "ring"
  c.execution.remat = LAYOUTS[layout]["remat"]
  c.optimizer.learning_rate = 3e-5
  c.schedule.kind = "linear"
  defaults.fill(
      c.data.sources, prose=dict(kind="documents", path="assets/text-train.array_record", share=0.8, window=32768),
      screens=dict(
          kind="screens", path="assets/screens-train.array_record", share=0.2, turns=2,
          tasks=dict(list=0.35, ground=0.35, refer=0.06, read=0.02, caption=0.02, color=0.2)))
  return c
