"""How much each part of a decoder carries, measured by its activations on calibration batches.

Channels, neurons and heads as Minitron scores them (arXiv 2407.14679): a mean of sizes over the tokens of a row, then the L2
norm over rows; rows of packed batches are its calibration samples. Layers by block influence (arXiv 2403.03853).

Shapes: B rows, S sequence, L layers, N = 2 L + 1 norms (before attention, before the MLPs, the last), D width, H query heads,
d head size, F MLP width.
"""

from typing import Any, Callable, Iterable, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from bluelm_jax.models import layers

_NORMS = ("attention_norm", "mlp_norm", "final_norm")  # what reads the hidden channels


class Importance(NamedTuple):
  """Scores; what scores higher carries more. Those of single rows have B in front.

  Attributes:
    width: [N, D], of hidden channels: |output| of every norm.
    share: [N, D], of each channel in the sum of squares a norm divides by, averaged over tokens; a norm's add up to 1.
    heads: [L, H], L2 norm of a query head's output.
    neurons: [L, F], |input| of the MLP's last product.
    layers: [L], 1 - cos(input, output) of a layer, averaged over tokens.
  """

  width: Any
  share: Any
  heads: Any
  neurons: Any
  layers: Any


def watch(forward: Callable, segment_ids_BS) -> tuple[Any, Importance, jax.Array]:
  """Scores the rows of a batch in a forward pass; made to be jitted.

  Args:
    forward: forward(mutable=names) -> (output, variables), a model's `apply` on the batch.
    segment_ids_BS: int32 [B, S]; 0 is padding, which counts nowhere.

  Returns:
    (output, float32 scores of every row, int32 [B] tokens of every row).
  """
  real_BS = segment_ids_BS > 0
  tokens_B = jnp.sum(real_BS, axis=1)

  def mean(x):  # over the tokens of a row
    ones = (1,) * (x.ndim - 2)
    total = jnp.sum(jnp.where(real_BS.reshape(*real_BS.shape, *ones), x, 0.0), axis=1)
    return total / jnp.maximum(tokens_B, 1).reshape(-1, *ones)

  def interceptor(call, args, kwargs, context):
    out = call(*args, **kwargs)
    if context.method_name == "__call__":
      for name, value in _of_tokens(context.module, args, out).items():
        context.module.sow("intermediates", name, mean(value), reduce_fn=lambda _, x: x, init_fn=lambda: None)
    return out

  with nn.intercept_methods(interceptor):
    output, variables = forward(mutable=["intermediates"])
  tree = variables["intermediates"]
  tree = tree.get("decoder", tree)
  stack = tree["layers"]
  norms = lambda name: jnp.concatenate([stack["attention_norm"][name], stack["mlp_norm"][name], tree["final_norm"][name][None]])
  scores = Importance(norms("size"), norms("share"), stack["attention"]["heads"]["size"], stack["mlp"]["neurons"]["size"], stack["block"]["turn"])
  return output, jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), scores), tokens_B


def _of_tokens(module, args, out) -> dict[str, jax.Array]:
  """float32 numbers of every token, [B, S, ...], that a module's call shows; nothing for most modules."""
  wide = lambda x: x.astype(jnp.float32)
  if isinstance(module, layers.RMSNorm) and module.name in _NORMS:
    squares = wide(args[0]) ** 2
    return {"size": jnp.abs(wide(out)), "share": squares / _positive(jnp.sum(squares, axis=-1, keepdims=True))}
  if not isinstance(module, layers.Tap) or module.name == "tiles":  # a vision tower's are no rows of tokens
    return {}
  if module.name == "heads":
    return {"size": jnp.linalg.norm(wide(args[0]), axis=-1)}
  if module.name == "neurons":
    return {"size": jnp.abs(wide(args[0]))}
  assert module.name == "block", module.name
  a, b = map(wide, args)
  return {"turn": 1.0 - jnp.sum(a * b, axis=-1) / _positive(jnp.linalg.norm(a, axis=-1) * jnp.linalg.norm(b, axis=-1))}


def _positive(x):
  return jnp.maximum(x, jnp.finfo(jnp.float32).tiny)


def gather(rows: Iterable[tuple[Importance, np.ndarray]]) -> Importance:
  """Scores over all rows of all batches, float64.

  They are summed on the host, row by row, so that the number of devices does not reach them.

  Args:
    rows: (scores of a batch's rows, their tokens), as `watch` returns them.
  """
  sums, tokens = Importance(*[0.0] * len(Importance._fields)), 0
  for scores, tokens_B in rows:
    tokens_B = np.asarray(tokens_B, np.float64)
    scores = Importance(*(np.asarray(x, np.float64) for x in scores))
    size = lambda x: np.sum(x * x, axis=0)
    average = lambda x: np.einsum("b,b...->...", tokens_B, x)
    added = (size(scores.width), average(scores.share), size(scores.heads), size(scores.neurons), average(scores.layers))
    sums, tokens = Importance(*map(np.add, sums, added)), tokens + tokens_B.sum()
  assert tokens, "no tokens to measure by"
  return Importance(np.sqrt(sums.width), sums.share / tokens, np.sqrt(sums.heads), np.sqrt(sums.neurons), sums.layers / tokens)
