"""What the makers say of a chip, and how we ask its compiler to overlap communication."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Chip:
  """Public figures of one device.

  Attributes:
    flops: bfloat16 peak, FLOP/s.
    memory: bytes of HBM.
    bandwidth: of HBM, bytes/s.
    link: bytes/s a device can send to the others of its slice or host.
    network: bytes/s beyond the host (GPUs only; a TPU slice has one fabric).
    compiler_options: for `jax.jit`.
    products: share of the peak that a layer's matrix products reach, with what runs between them: assumed for TPUs;
      of GPUs, what makes the estimate of BlueLM-2.5-3B's step that which an H200 took (tests/bench/README.md).
  """

  name: str
  flops: float
  memory: float
  bandwidth: float
  link: float
  network: float | None = None
  compiler_options: tuple[tuple[str, str | bool | int], ...] = ()
  products: float = 0.80


# Chips with SparseCores can leave collectives to them: all-gathers and reduce-scatters then run beside the matrix
# units, where otherwise they come out as synchronous all-reduces (tests/aot/test_fsdp.py).
_SPARSE_CORE = tuple((name, "true") for name in (
    "xla_tpu_enable_sparse_core_collective_offload_all_gather",
    "xla_tpu_enable_sparse_core_collective_offload_2d_all_gather",
    "xla_tpu_enable_sparse_core_collective_offload_3d_all_gather",
    "xla_tpu_enable_sparse_core_collective_offload_reduce_scatter",
    "xla_tpu_enable_sparse_core_collective_offload_nd_reduce_scatter",
    "xla_tpu_enable_sparse_core_reduce_scatter_v2",
    "xla_tpu_enable_sparse_core_collective_offload_all_reduce",
    "xla_tpu_use_tc_device_shape_on_sc",
    "xla_sc_disable_megacore_partitioning",
    "xla_enable_async_all_gather",
    "xla_tpu_prefer_async_allgather_to_allreduce",
)) + (("xla_tpu_enable_async_collective_fusion_fuse_all_gather", "false"),)

# GPUs. Left to itself the compiler joins a layer's reduce-scatters into one, after which nothing is left to hide it; sends
# keys and values of a ring's hop one after the other, of which a kernel hides only the last; and lets nothing travel
# beside the loop of a ring.
_HIDING = (
    ("xla_gpu_enable_latency_hiding_scheduler", True),
    ("xla_gpu_reduce_scatter_combine_threshold_bytes", 2**20),
    ("xla_gpu_collective_permute_combine_threshold_bytes", 2**28),
    ("xla_gpu_experimental_parallel_collective_overlap_limit", 3),
)

# By jax's device_kind. TPUs: cloud.google.com/tpu/docs (v5e, v5p, v6e pages); H100 and H200 SXM: NVIDIA's data sheets, with
# NVLink at 450 GB/s a direction and one 400 Gbit/s InfiniBand port a GPU.
CHIPS = {
    "TPU v5 lite": Chip("v5e", 197e12, 16 * 2**30, 819e9, 200e9),
    "TPU v5": Chip("v5p", 459e12, 95 * 2**30, 2765e9, 600e9, compiler_options=_SPARSE_CORE),
    "TPU v6 lite": Chip("v6e", 918e12, 32 * 2**30, 1640e9, 448e9, compiler_options=_SPARSE_CORE),
    "NVIDIA H100 80GB HBM3": Chip("H100", 989e12, 80e9, 3350e9, 450e9, network=50e9, compiler_options=_HIDING, products=0.60),
    "NVIDIA H200": Chip("H200", 989e12, 141e9, 4800e9, 450e9, network=50e9, compiler_options=_HIDING, products=0.60),
}


def chip(device_kind: str) -> Chip:
  """Raises ValueError on a chip we have no figures of."""
  if device_kind not in CHIPS:
    raise ValueError(f"no figures for {device_kind!r}; add it to sharding/chips.py, which knows {', '.join(CHIPS)}")
  return CHIPS[device_kind]


def compiler_options(device_kind: str) -> dict[str, str | bool | int]:
  """For `jax.jit`; none for chips without a tuned set."""
  return dict(CHIPS[device_kind].compiler_options) if device_kind in CHIPS else {}
