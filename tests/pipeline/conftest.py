"""Runs of a few documents, most of whose time Beam would take to look at its own transforms and options."""

import importlib.util

import pytest


@pytest.fixture(scope="session", autouse=True)
def looked_at_once():
  """For operators that run without `run.run`, which remembers by itself."""
  if not importlib.util.find_spec("apache_beam"):  # which some tests here do without
    yield
    return
  from bluelm_jax.pipeline import remember

  with remember.remembered():
    yield
