"""Runs of a few documents, most of whose time Beam would take to look at its own transforms and options again and again."""

import importlib.util
import weakref

import pytest


@pytest.fixture(scope="session", autouse=True)
def looked_at_once():
  """Beam reads the signature of every method of a DoFn, and parses its command line, some thousand times a run. None of ours keeps state."""
  if not importlib.util.find_spec("apache_beam"):  # which some tests here do without
    yield
    return
  from apache_beam.options.pipeline_options import PipelineOptions
  from apache_beam.transforms import userstate

  of_dofn, view_of, specs, views = userstate.get_dofn_specs, PipelineOptions.view_as, {}, weakref.WeakKeyDictionary()

  def get_dofn_specs(dofn):
    if type(dofn) not in specs:
      specs[type(dofn)] = of_dofn(dofn)
    return specs[type(dofn)]

  def view_as(self, cls):
    own = views.setdefault(self, {})
    if cls not in own:
      own[cls] = view_of(self, cls)
    return own[cls]

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(userstate, "get_dofn_specs", get_dofn_specs)
    patch.setattr(PipelineOptions, "view_as", view_as)
    yield
