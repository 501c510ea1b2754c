"""JAX's persistent compilation cache, so that a second run starts at once."""

import os
import pathlib

import jax


def use_cache() -> None:
  """Keeps compiled programs in $JAX_COMPILATION_CACHE_DIR, by default ~/.cache/bluelm_jax."""
  default = pathlib.Path.home() / ".cache" / "bluelm_jax"
  jax.config.update("jax_compilation_cache_dir", os.environ.get("JAX_COMPILATION_CACHE_DIR", str(default)))
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)
