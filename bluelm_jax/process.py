"""Settings of the process that doors make before they compute."""

import ctypes
import glob
import importlib.util
import os
import pathlib
import platform

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -2, -4, -8


def keep_memory() -> None:
  """Keeps freed host memory in the process; call it before jax starts its threads.

  XLA's CPU backend allocates large buffers anew in every step. glibc would hand them back to the kernel
  each time, and the page faults take a third of a small model's step.
  """
  if platform.libc_ver()[0] == "glibc":
    libc = ctypes.CDLL(None)
    for option, value in ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 2**31 - 1), (_M_TOP_PAD, 64 << 20), (_M_ARENA_MAX, 1)):
      libc.mallopt(option, value)


def pass_over_absent_tpu() -> None:
  """Takes the CPU where libtpu is installed only to compile for TPUs elsewhere: it complains at length without one."""
  if "JAX_PLATFORMS" in os.environ or importlib.util.find_spec("libtpu") is None:
    return
  if not any(glob.glob(pattern) for pattern in ("/dev/accel*", "/dev/vfio/*", "/dev/nvidia[0-9]*", "/dev/kfd")):
    os.environ["JAX_PLATFORMS"] = "cpu"


def join_others() -> None:
  """Makes this process one of several that train together; call it before anything touches a device.

  jax finds the others on Cloud TPU, under Slurm and under Open MPI. Elsewhere JAX_COORDINATOR_ADDRESS (host:port of the
  first), JAX_NUM_PROCESSES and JAX_PROCESS_ID name them.

  Raises:
    ValueError: nothing says where they are.
    RuntimeError: they do not come in time.
  """
  import jax

  try:
    numbers = {name: int(os.environ[key]) for name, key in (("num_processes", "JAX_NUM_PROCESSES"), ("process_id", "JAX_PROCESS_ID")) if key in os.environ}
    jax.distributed.initialize(**numbers)
  except ValueError as e:
    raise ValueError(f"the other processes are not found ({' '.join(str(e).split())[:200]}); set JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID") from e


def cache_programs() -> None:
  """Keeps compiled programs in $JAX_COMPILATION_CACHE_DIR, by default ~/.cache/bluelm_jax."""
  import jax

  if not jax.config.jax_compilation_cache_dir:
    jax.config.update("jax_compilation_cache_dir", str(pathlib.Path.home() / ".cache" / "bluelm_jax"))
