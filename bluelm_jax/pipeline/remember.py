"""Beam's look at a pipeline, once for each kind of thing instead of a thousand times, which takes seconds."""

import contextlib
from unittest import mock
import weakref

from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.transforms import userstate


@contextlib.contextmanager
def remembered():
  """Inside, Beam reads the methods of each class of DoFn once, and parses each kind of option once. For DoFns without state of Beam's, as all of ours are, and one pipeline at a time."""
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

  with mock.patch.object(userstate, "get_dofn_specs", get_dofn_specs), mock.patch.object(PipelineOptions, "view_as", view_as):
    yield
