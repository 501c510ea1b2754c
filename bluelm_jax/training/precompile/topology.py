"""Descriptions of chips that are not here."""

import importlib.util
import os
import pathlib
import re

from jax.experimental import topologies


def devices(name: str) -> list:
  """The devices of "v5p:4x8x8" (a TPU slice by its torus) or "h100:64" (so many GPUs, eight to a host).

  Raises:
    ValueError: a name of no known slice, or a compiler that is not installed.
  """
  chip, _, size = name.partition(":")
  if chip == "h100":
    return _gpus(size)
  if not re.fullmatch(r"v\d\w*|tpu\w+", chip) or not re.fullmatch(r"\d+(x\d+)+", size):
    raise ValueError(f"topology {name!r} is unknown; write a TPU slice such as v5e:16x16 or v5p:4x8x8, or h100:64")
  if importlib.util.find_spec("libtpu") is None:
    raise ValueError("compiling for a TPU needs libtpu; pip install libtpu")
  # Without these libtpu asks the metadata server of a cloud machine, and takes a lock that admits one process.
  os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
  os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
  try:
    return list(topologies.get_topology_desc(platform="tpu", topology_name=name).devices)
  except Exception as e:  # libtpu raises RuntimeError subclasses of its own
    raise ValueError(f"topology {name!r} is not one libtpu knows ({e}); try v5e:16x16, v5p:4x8x8 or v6e:16x16") from e


def _gpus(count: str) -> list:
  if not count.isdigit() or int(count) < 1 or (int(count) > 8 and int(count) % 8):
    raise ValueError(f"h100:{count} is no cluster of hosts with eight GPUs; use 1 to 8 or a multiple of 8")
  found = lambda package: all(importlib.util.find_spec(name) for name in (package.split(".")[0], package))
  packages = ("jax_cuda12_plugin", "nvidia.cuda_nvcc", "nvidia.cudnn", "nvidia.cuda_runtime")
  missing = [package for package in packages if not found(package)]
  if missing and not all(map(found, ("jax_cuda13_plugin", "nvidia.cu13", "nvidia.cudnn"))):
    raise ValueError(f"compiling for a GPU needs {missing[0]}; pip install 'jax[cuda12]'")
  count = int(count)
  shape = f"1x{max(count // 8, 1)}x{min(count, 8)}"
  spec = pathlib.Path(__file__).with_name("h100.txtpb").read_text()
  return list(topologies.get_topology_desc(platform="cuda", topology_name="", topology=shape, target_config=spec).devices)
