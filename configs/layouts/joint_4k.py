"""Joint pretraining of BlueLM-2.5-3B at 4K, laid out for a cluster; half of the tokens are image tokens.

  python -m bluelm_jax.precompile --config=configs/layouts/joint_4k.py:v5p_256 --topology=v5p:4x8x8
  python -m bluelm_jax.precompile --config=configs/layouts/joint_4k.py:v5e_256 --topology=v5e:16x16
  python -m bluelm_jax.precompile --config=configs/layouts/joint_4k.py:h100_1 --topology=h100:1
  python -m bluelm_jax.precompile --config=configs/layouts/joint_4k.py:h100_8 --topology=h100:8
  python -m bluelm_jax.precompile --config=configs/layouts/joint_4k.py:h100_64 --topology=h100:64
"""

from bluelm_jax.training import defaults

# The slice, rows of 4096 tokens in a step, and the mesh. Weights are split over fewer ranks than there are devices:
# over 64 ranks of a v5p the vision tower's gradients, 18 columns to a rank, are all-reduced and not scattered.
LAYOUTS = {
    "v5e_256": dict(topology="v5e:16x16", rows=256, remat="full", mesh=dict(data=16, fsdp=16)),
    "v5p_256": dict(topology="v5p:4x8x8", rows=512, remat="dots_no_batch", mesh=dict(data=16, fsdp=16)),
    "h100_1": dict(topology="h100:1", rows=2, remat="dots_no_batch", mesh=dict(fsdp=1)),
    **{f"h100_{n}": dict(topology=f"h100:{n}", rows=4 * n, remat="dots_no_batch", mesh=dict(data=n // 8, fsdp=8)) for n in (8, 16, 32, 64)},
}


def get_config(layout: str = "v5p_256"):
  if layout not in LAYOUTS:
    raise ValueError(f"layout {layout!r} is unknown; use {', '.join(LAYOUTS)}")
  c = defaults.stage()
  c.name, c.preset = f"joint_4k_{layout}", "bluelm_2_5_3b"
  c.data.rows, c.data.length = LAYOUTS[layout]["rows"], 4096
  c.mesh.update(LAYOUTS[layout]["mesh"])
  groups = c.mesh.data * c.mesh.fsdp
  c.data.tile_slots = 10 * c.data.rows // groups  # 10 x 196 of a row's 4096 tokens
  c.execution.remat = LAYOUTS[layout]["remat"]
  c.optimizer.learning_rate = 3e-4
  c.schedule.kind = "cosine"
  defaults.fill(
      c.data.sources,
      screens=dict(
          kind="screens", path="assets/screens-train.array_record", share=0.6, turns=2,
          tasks=dict(list=0.35, ground=0.35, refer=0.06, read=0.02, caption=0.02, color=0.2)),
      prose=dict(kind="documents", path="assets/text-train.array_record", share=0.4, window=4096))
  return c
