"""Eight virtual CPU devices for every test, whose programs are compiled in a hurry: most run once.

What one process compiles the others need not, be they pytest's or the tests' own: they share a cache that ends with the run.
"""

import os
import tempfile

from tests import hurry

os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8 {hurry.FLAGS}"
os.environ.setdefault("JAX_PLATFORMS", "cpu")
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:  # pytest's first process, which its workers come from
  _COMPILED = tempfile.TemporaryDirectory(prefix="compiled-")
  os.environ["JAX_COMPILATION_CACHE_DIR"] = _COMPILED.name
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"
os.environ["JAX_TRACEBACK_IN_LOCATIONS_LIMIT"] = "0"  # nobody asks which line an instruction comes from; to say it takes a tenth of the time

import jax  # noqa: E402  (after the flags)
import pytest  # noqa: E402

_LONG = (  # files of a minute or more
    "test_recipe", "test_fsdp", "test_proxies", "test_store_processes", "test_rules", "test_processes", "test_engine", "test_supervise", "test_attention", "test_accumulate", "test_spikes",
    "test_store", "test_attention_gpu", "test_watch", "test_online", "test_configs", "test_generate", "test_ring", "test_tpu_kernels", "test_pruning",
    "test_precompile", "test_memory", "test_record", "test_distill", "test_bluelm", "test_parity", "test_engine_parity", "test_sampling", "test_terminal",
    "test_server_engine", "test_prepare", "test_reasoning")


def pytest_collection_modifyitems(items):
  """Long files first, so that no worker is left alone with one at the end."""
  order = {name: i for i, name in enumerate(_LONG)}
  items.sort(key=lambda item: order.get(item.path.stem, len(order)))


@pytest.fixture
def float64():
  """Double precision, for this test alone."""
  jax.config.update("jax_enable_x64", True)
  yield
  jax.config.update("jax_enable_x64", False)
