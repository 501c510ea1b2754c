"""The programs of stages that are run again and again in one process, traced and compiled once, for a test file that imports this fixture.

What a process makes of a program that another one compiled, test_supervise.py and test_processes.py see.
"""

import copy
import json

import flax.linen as nn
import jax
from ml_collections import ConfigDict
import pytest

from bluelm_jax.training import accumulate
from bluelm_jax.training import online
from bluelm_jax.training import pruning
from bluelm_jax.training import stage

_NOT_COMPILED = ("name", "log_every", "checkpoint_every", "keep", "keep_every", "export_every", "init_from")


def remember_all(patch) -> None:
  """`patch(module, name, value)` is setattr or monkeypatch's."""
  for module, name in ((stage, "abstract_state"), (stage, "jit_step"), (accumulate, "programs"), (online, "jit_losses"), (pruning, "jit_scores")):
    patch(module, name, _remembering(getattr(module, name)))


def _remembering(make):
  """`make` that answers as before where its config, model, layout and mesh or shardings are as before; an optimizer follows from the config."""
  found = {}

  def remembered(*arguments):
    key = tuple(map(_key, arguments))
    if key not in found:  # of a copy: a program reads its config when it is traced, which a test may have changed by then
      found[key] = make(*(copy.deepcopy(a) if isinstance(a, ConfigDict) else a for a in arguments))
    return found[key]

  return remembered


def _key(argument):
  if isinstance(argument, ConfigDict):
    kept = {k: v for k, v in argument.to_dict().items() if k not in _NOT_COMPILED}
    for part in ("data", "evaluate"):  # a program knows how many sources there are, not what they hold
      if "sources" in kept.get(part, ()):
        kept[part]["sources"] = sorted(kept[part]["sources"])
    return json.dumps(kept, sort_keys=True)
  if isinstance(argument, nn.Module):
    return repr(argument.config)
  return tuple(_leaf(x) for x in jax.tree.leaves(argument))


def _leaf(x):
  if isinstance(x, jax.sharding.Mesh):  # it can be called, too
    return x
  if callable(x):  # an optimizer's
    return None
  return (x.shape, str(x.dtype)) if hasattr(x, "dtype") else x


@pytest.fixture(scope="module", autouse=True)
def programs():
  with pytest.MonkeyPatch.context() as patch:
    remember_all(patch.setattr)
    yield
