"""How programs are traced and compiled for tests: in a hurry, since most run once or twice."""

import gc
import importlib.metadata

FLAGS = "--xla_backend_optimization_level=0"
# The emitters of fusions take two thirds of what is left to compile; jax from 0.11 on has no others.
CAN_DO_WITHOUT_EMITTERS = tuple(map(int, importlib.metadata.version("jax").split(".")[:2])) < (0, 11)
if CAN_DO_WITHOUT_EMITTERS:
  FLAGS += " --xla_cpu_use_fusion_emitters=false"
# For jit, where two programs must agree to the last bit: the emitters round both alike.
ALIKE = {"xla_cpu_use_fusion_emitters": True} if CAN_DO_WITHOUT_EMITTERS else {}

# A trace makes many small objects that live on: looking among them for garbage took a fifth of its time. Of whoever imports this.
gc.set_threshold(50_000, 10, 10)
