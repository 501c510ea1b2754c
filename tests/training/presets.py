"""The preset of `faulty` among the package's, for a test file that imports this fixture."""

import pytest

from bluelm_jax.models import presets
from tests.training import faulty


@pytest.fixture(scope="module", autouse=True)
def preset():
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(presets, "PRESETS", dict(presets.PRESETS))
    faulty.add_preset()
    yield
