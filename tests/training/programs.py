"""The programs of stages that are run again and again in one process, traced and compiled once, for a test file that imports this fixture.

What a process makes of a program that another one compiled, test_supervise.py and test_processes.py see.
"""

import json

import jax
import pytest

from bluelm_jax.training import accumulate
from bluelm_jax.training import online
from bluelm_jax.training import stage

_NOT_COMPILED = ("name", "log_every", "checkpoint_every", "keep", "keep_every", "export_every", "init_from")


def remember_all(patch) -> None:
  """`patch(module, name, value)` is setattr or monkeypatch's."""
  for module, name in ((stage, "abstract_state"), (stage, "jit_step"), (accumulate, "programs"), (online, "jit_losses")):
    patch(module, name, _remembering(getattr(module, name)))


def _remembering(make):
  """make(config, model, *rest) that answers as before where config, model and the shardings or the mesh in `rest` are as before."""
  found = {}

  def remembered(config, model, *rest):
    values = {k: v for k, v in config.to_dict().items() if k not in _NOT_COMPILED}
    places = [x for x in jax.tree.leaves(rest) if isinstance(x, (jax.sharding.Mesh, jax.sharding.Sharding))]
    key = json.dumps(values, sort_keys=True), repr(model.config), tuple(places)
    if key not in found:
      found[key] = make(config, model, *rest)
    return found[key]

  return remembered


@pytest.fixture(scope="module", autouse=True)
def programs():
  with pytest.MonkeyPatch.context() as patch:
    remember_all(patch.setattr)
    yield
