"""Parameters of a teacher to those of a student that keeps some of its layers, channels, neurons and heads.

Nothing is read until the student's parameter is, and of a stacked one a layer at a time.
"""

import numpy as np

from bluelm_jax.compression.choose import Kept
from bluelm_jax.interop.mapping import Tensor
from bluelm_jax.models.config import BlueLMConfig
from bluelm_jax.models.config import DecoderConfig

# What each axis of a parameter counts, a field of Kept; "" is left whole. Under "layers", of one layer.
_AXES = {
    "embedding": ("", "width"),
    "lm_head": ("width", ""),
    "final_norm/scale": ("width",),
    "layers/attention_norm/scale": ("width",),
    "layers/attention/q": ("width", "heads", ""),
    "layers/attention/k": ("width", "groups", ""),
    "layers/attention/v": ("width", "groups", ""),
    "layers/attention/q_bias": ("heads", ""),
    "layers/attention/k_bias": ("groups", ""),
    "layers/attention/v_bias": ("groups", ""),
    "layers/attention/q_norm/scale": ("",),
    "layers/attention/k_norm/scale": ("",),
    "layers/attention/o": ("heads", "", "width"),
    "layers/mlp_norm/scale": ("width",),
    "layers/mlp/gate": ("width", "neurons"),
    "layers/mlp/up": ("width", "neurons"),
    "layers/mlp/down": ("neurons", "width"),
}
_ADAPTER = {"adapter/down": ("", "width"), "adapter/down_bias": ("width",)}  # its output is the decoder's width


def prune(
    tensors: dict[str, Tensor], teacher: BlueLMConfig | DecoderConfig, student: BlueLMConfig | DecoderConfig, kept: Kept) -> dict[str, Tensor]:
  """The student's parameters, in the teacher's dtypes.

  A tied student of an untied teacher takes the embedding for its logits too: all layers read it. An untied student of a
  tied teacher gets the table twice. A BlueLM of a decoder has its decoder's parameters alone.

  Args:
    tensors: the teacher's, by path; see `interop.load.open_checkpoint`.
    teacher, student: a pair that `fit.check` accepts.
  """
  inside, own = ("decoder/" if isinstance(c, BlueLMConfig) else "" for c in (teacher, student))
  found = {p: _whole(t, _ADAPTER[p], kept) if p in _ADAPTER else t for p, t in tensors.items() if not p.startswith(inside)} if inside else {}
  decoder = {p: _decoder(p, tensors[inside + p], kept) for p in _AXES if inside + p in tensors}
  assert len(found) + len(decoder) == len(tensors), set(tensors) - set(found) - {inside + p for p in decoder}
  if getattr(student, "decoder", student).tie_embeddings:
    decoder.pop("lm_head", None)
  elif "lm_head" not in decoder:
    table = decoder["embedding"]
    decoder["lm_head"] = Tensor(table.shape[::-1], table.dtype, lambda: table.read().T)
  return found | {own + p: t for p, t in decoder.items()}


def _decoder(path: str, tensor: Tensor, kept: Kept) -> Tensor:
  count, axes = len(kept.layers), _AXES[path]
  if path == "final_norm/scale":
    return _whole(tensor, axes, kept, kept.gains[-1])
  if not path.startswith("layers/"):
    return _whole(tensor, axes, kept)
  gains = {"layers/attention_norm/scale": kept.gains[:count], "layers/mlp_norm/scale": kept.gains[count:-1]}
  return _stacked(tensor, axes, kept, gains.get(path, np.ones(count)))


def _whole(tensor: Tensor, axes, kept: Kept, gain: float = 1.0) -> Tensor:
  return Tensor(_shape(tensor.shape, axes, kept), tensor.dtype, lambda: _cut(tensor.read(), axes, kept, 0, gain))


def _stacked(tensor: Tensor, axes, kept: Kept, gains: np.ndarray) -> Tensor:
  shape = (len(kept.layers), *_shape(tensor.shape[1:], axes, kept))

  def layer(i: int) -> np.ndarray:
    return _cut(tensor.read(int(kept.layers[i])), axes, kept, i, gains[i])

  def read(i: int | None = None) -> np.ndarray:
    if i is not None:
      return layer(i)
    out = np.empty(shape, tensor.dtype)
    for at in range(len(out)):
      out[at] = layer(at)
    return out

  return Tensor(shape, tensor.dtype, read)


def _shape(shape, axes, kept: Kept) -> tuple[int, ...]:
  return tuple(getattr(kept, name).shape[-1] if name else size for size, name in zip(shape, axes, strict=True))


def _cut(value: np.ndarray, axes, kept: Kept, layer: int, gain: float) -> np.ndarray:
  """`value` at the kept indices of each axis, in the student's layer `layer`, times `gain`."""
  for axis, name in enumerate(axes):
    if name:
      index = getattr(kept, name)
      value = value.take(index if index.ndim == 1 else index[layer], axis)
  return value if gain == 1.0 else (value * gain).astype(value.dtype)
