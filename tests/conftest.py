"""Eight virtual CPU devices for every test, whose programs are compiled in a hurry: most run once."""

import os

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax  # noqa: E402  (after the flags)
import pytest  # noqa: E402

_SLOW = ("training", "aot", "sharding", "kernels")


def pytest_collection_modifyitems(items):
  """Folders of slow tests first, so that no worker is left alone with one at the end."""
  items.sort(key=lambda item: next((i for i, name in enumerate(_SLOW) if item.path.parent.name == name), len(_SLOW)))


@pytest.fixture
def float64():
  """Double precision, for this test alone."""
  jax.config.update("jax_enable_x64", True)
  yield
  jax.config.update("jax_enable_x64", False)
