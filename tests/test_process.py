"""What doors set for their process."""

import glob
import importlib.util
import os

import pytest

from bluelm_jax import process


@pytest.mark.parametrize("libtpu,devices,before,after", [
    (True, [], None, "cpu"), (True, ["/dev/accel0"], None, None), (True, ["/dev/nvidia0"], None, None), (False, [], None, None),
    (True, [], "cuda", "cuda")])
def test_an_absent_tpu_is_passed_over(libtpu, devices, before, after, monkeypatch):
  """Only where libtpu is installed, no accelerator is there and nobody chose a platform."""
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: libtpu or None)
  monkeypatch.setattr(glob, "glob", lambda pattern: [d for d in devices if d.startswith(pattern.rstrip("*[0-9]/"))])
  monkeypatch.setitem(os.environ, "JAX_PLATFORMS", "")
  monkeypatch.delitem(os.environ, "JAX_PLATFORMS")
  if before:
    monkeypatch.setenv("JAX_PLATFORMS", before)
  process.pass_over_absent_tpu()
  assert os.environ.get("JAX_PLATFORMS") == after
