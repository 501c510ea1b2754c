"""Which student can be cut out of which teacher."""

import dataclasses

from bluelm_jax.models import config as config_lib
from bluelm_jax.models.config import BlueLMConfig
from bluelm_jax.models.config import DecoderConfig

_EQUAL = ("vocab_size", "head_dim", "rope_theta", "rope_scaling", "qk_norm", "qkv_bias")
_AT_MOST = ("num_layers", "embed_dim", "mlp_dim", "num_kv_heads", "context")


def check(teacher: BlueLMConfig | DecoderConfig, student: BlueLMConfig | DecoderConfig) -> None:
  """Raises ValueError unless the student's decoder is a sub-selection of the teacher's, and what else they have the same.

  A BlueLM may be cut out of a decoder: its vision tower and adapter are new then.
  """
  if isinstance(teacher, BlueLMConfig):
    _check_images(teacher, student)
  a, b = (getattr(c, "decoder", c) for c in (teacher, student))
  for name in _EQUAL:
    if getattr(a, name) != getattr(b, name):
      raise ValueError(f"the teacher's {name} is {getattr(a, name)}, the student's {getattr(b, name)}, and pruning does not change it; choose a student with the teacher's")
  for name in _AT_MOST:
    if getattr(a, name) < getattr(b, name):
      raise ValueError(f"the student's {name} {getattr(b, name)} exceeds the teacher's {getattr(a, name)}; choose a smaller student or a larger teacher")
  of_a, of_b = (c.num_heads // c.num_kv_heads for c in (a, b))
  if of_a < of_b:
    raise ValueError(f"the student has {of_b} query heads to a KV head, the teacher {of_a}; choose a student with {of_a} or fewer")


def _check_images(teacher: BlueLMConfig, student) -> None:
  if not isinstance(student, BlueLMConfig):
    raise ValueError("the teacher sees images and the student does not; choose a student that does, or a teacher that is a language model")
  if not config_lib.same_weights(teacher.vision, student.vision):
    raise ValueError("teacher and student have different vision towers, which pruning does not change; choose a student with the teacher's")
  a, b = (dataclasses.replace(c.adapter, hidden_dim=c.adapter.hidden_dim or c.decoder.embed_dim) for c in (teacher, student))
  for name in (f.name for f in dataclasses.fields(a)):
    if getattr(a, name) != getattr(b, name):
      raise ValueError(
          f"the teacher's adapter has {name} {getattr(a, name)}, the student's {getattr(b, name)}, and pruning does not change it; "
          f"choose a student whose adapter has {name} = {getattr(a, name)}")
