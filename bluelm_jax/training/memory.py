"""Memory of a train step on one device, predicted in seconds, with nothing compiled.

The state is exact: its shapes and shardings are known. What a backward pass keeps is asked of jax, by tracing one
device's share of the model under the stage's remat policy. What the compiler needs besides, at the two moments when
most is alive, is counted by hand: the loss, when no gradient is there yet, and the backward pass of the last layer,
when all have their memory. Tests compare the larger sum with what compilers place (tests/aot).

Shapes: B rows, S sequence, T tiles, V vocabulary: all of one device.
"""

import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from bluelm_jax.data.tokenizer import ASSET
from bluelm_jax.data.tokenizer import Tokenizer
from bluelm_jax.models import config as config_lib
from bluelm_jax.models import serialize
from bluelm_jax.models.config import BlueLMConfig
from bluelm_jax.sharding import remat
from bluelm_jax.sharding import rules
from bluelm_jax.training import accumulate
from bluelm_jax.training import checks
from bluelm_jax.training import optimizer as optimizer_lib
from bluelm_jax.training import stage
from bluelm_jax.training import teacher as teacher_lib


@dataclasses.dataclass(frozen=True)
class Budget:
  """Bytes on one device.

  Attributes:
    params, gradients, optimizer: the state; float32 Adam takes 16 bytes a trained parameter, in as many parts as the
      mesh cuts it into; 20 where gradients of several batches are added up. A teacher's parameters are among the first.
    sums: of the gradients of several batches.
    cast: weights that lie in pieces, as they are gathered: in the precision of the products, made once a step.
    saved: activations kept from the forward for the backward pass.
    loss, layer: what is alive besides while the loss and its gradient are made, and in the backward pass of a layer.
  """

  params: int
  gradients: int
  sums: int
  optimizer: int
  cast: int
  saved: int
  loss: int
  layer: int

  @property
  def total(self) -> int:
    return self.params + self.sums + self.optimizer + self.cast + self.saved + max(self.loss, self.gradients + self.layer)


def budget(config, mesh) -> Budget:
  """The prediction for a stage on a mesh, which may be of described devices."""
  checks.trains(config)
  model_config = stage.described_model(config)
  model = serialize.build(model_config)
  tx = optimizer_lib.make_optimizer(config.optimizer, config.schedule, config.steps)
  _, shapes, shardings = stage.abstract_state(config, model, tx, mesh)
  pieces = stage.gradient_shardings(config, model, tx, mesh)
  spec, _ = stage.batch_shape(config, model_config, mesh, Tokenizer(config.tokenizer or ASSET))
  local = lambda tree, places: sum(math.prod(p.shard_shape(x.shape)) * x.dtype.itemsize for x, p in zip(jax.tree.leaves(tree), jax.tree.leaves(places)))
  share = _Share(config, model_config, mesh, spec)
  weights, places = shapes.trainable | shapes.frozen, shardings.trainable | shardings.frozen
  params = local(weights, places)
  teacher = teacher_lib.abstract(config, model_config, mesh)
  params += local(teacher, jax.tree.map(lambda x: x.sharding, teacher))
  gradients, sums = local(shapes.trainable, pieces), 0
  if accumulate.most(config.data.accumulate) > 1:  # the sums of those before, in float32, beside a batch's own
    sums = local(jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.float32), shapes.trainable), pieces)
  cast = 0
  if config.zero == 3 and rules.ways(mesh, "embed") > 1 and share.decoder.dtype != share.decoder.param_dtype:
    used = [p for p in weights if share.tiles or not p.startswith("vision/")]
    cast = local([jax.ShapeDtypeStruct(weights[p].shape, jnp.dtype(share.decoder.dtype)) for p in used], [places[p] for p in used])
  return Budget(params, gradients, sums, local(shapes.opt_state, shardings.opt_state), cast, share.saved(), share.loss(), share.layer())


def alternatives(config, devices) -> dict[str, Budget]:
  """Predictions by "remat policy, ZeRO stage"; the policy serves language model and vision tower alike."""
  mesh, found = rules.make_mesh(config.mesh.to_dict(), devices), {}
  for zero in (3, 2):
    for policy in remat.POLICIES:
      other = config.copy_and_resolve_references()
      other.zero, other.execution.remat = zero, policy
      found[f"{policy}, {zero}"] = budget(other, mesh)
  return found


def state_bytes(params: int, ranks: int, zero: int) -> int:
  """Of float32 weights, gradients and Adam's two moments on one of `ranks` devices, as ZeRO divides them.

  Stage 1 divides the moments, 2 the gradients too, 3 the weights too (arXiv 1910.02054); 0 divides nothing.
  """
  if zero not in (0, 1, 2, 3):
    raise ValueError(f"ZeRO has stages 0 to 3, not {zero}")
  weights, gradients, moments = ((4, 3), (4, 2), (8, 1))
  return sum(params * size // (ranks if zero >= stage else 1) for size, stage in (weights, gradients, moments))


class _Share:
  """What one device computes of a step: its rows and tiles, and with tensor ranks its heads, MLP columns and words."""

  def __init__(self, config, model_config, mesh, spec):
    ways = lambda name: rules.ways(mesh, name)
    decoder = getattr(model_config, "decoder", model_config)
    decoder = _local(decoder, ways("heads"))
    taught = teacher_lib.described(config, model_config)
    self.teacher = taught and _local(getattr(taught, "decoder", taught), ways("heads"))
    self.decoder, self.trainable, self.chunks = decoder, config.trainable, config.loss_chunks
    self.distils = config.objective == "distill"
    self.multimodal = isinstance(model_config, BlueLMConfig)
    self.model_config = dataclasses.replace(model_config, decoder=decoder) if self.multimodal else decoder
    self.rows, self.length = spec.rows // ways("batch"), spec.length // ways("sequence")
    self.tiles, self.tile_size = spec.groups * spec.tile_slots // ways("tiles"), spec.tile_size
    self.device = jax.sharding.Mesh(mesh.devices.reshape(-1)[:1], ("fsdp",))  # so that "auto" picks the chip's kernel
    self.split = mesh.size > 1

  def saved(self) -> int:
    """Activations, by the difference between one share and two; and weights kept as they were used, where a policy keeps them."""
    one, two = (self._kept(self.model_config, n, self.trainable) for n in (1, 2))
    cast = [a for a, b in zip(one, two) if a.shape == b.shape and a.ndim > 2 and a.dtype != jnp.dtype(self.decoder.param_dtype)]
    return _bytes(two) - _bytes(one) + _bytes(cast)

  def _kept(self, model_config, shares: int, trainable=(".*",)):
    """Shapes of what the backward pass of the last hidden states keeps, for several shares at once."""
    model, multimodal = serialize.build(model_config), isinstance(model_config, BlueLMConfig)
    init = lambda: nn.meta.unbox(model.init(jax.random.key(0), jnp.zeros((1, 8), jnp.int32), method="init_all" if multimodal else None))
    trainable, frozen = optimizer_lib.split_trainable(jax.eval_shape(init)["params"], trainable)
    row = jax.ShapeDtypeStruct((shares * self.rows, self.length), jnp.int32)
    tiles = jax.ShapeDtypeStruct((1, shares * self.tiles, self.tile_size, self.tile_size, 3), jnp.uint8)

    def hidden(m, tokens, segment_ids, vision_index, tiles):
      if not multimodal:
        return m.hidden(m.embed(tokens), tokens, segment_ids)[0]
      x = m.embed(tokens, m.encode_tiles(tiles), vision_index) if self.tiles else m.embed(tokens)
      return m.decoder.hidden(x, tokens, segment_ids)[0]

    def backward(trainable, frozen, *batch):
      run = lambda t: model.apply({"params": optimizer_lib.merge(t, frozen)}, *batch, method=hidden)
      return jax.vjp(run, trainable)[1]

    with jax.set_mesh(self.device):
      return jax.tree.leaves(jax.eval_shape(backward, trainable, frozen, row, row, row, tiles))

  def layer(self) -> int:
    """What the backward pass of a layer needs, the more of the decoder's and the tower's."""
    c = self.decoder
    layers = [self._layer(c, dataclasses.replace(c, num_layers=1, remat="none"), 2 * (c.num_heads + c.num_kv_heads) * c.head_dim + 3 * c.mlp_dim)]
    if self.multimodal and self.tiles:
      v = self.model_config.vision
      one = dataclasses.replace(
          self.model_config, vision=dataclasses.replace(v, num_layers=1, remat="none"), decoder=dataclasses.replace(c, num_layers=1, remat="full"))
      layers.append(self._layer(v, one, 4 * v.embed_dim + 2 * v.mlp_dim))
    return max(layers)

  def loss(self) -> int:
    """Logits, over which their gradient is written, the table whole and its gradient. In chunks: the logits of one, the table, and
    float32 gradients of the hidden states; the table's own lie in pieces, while no other gradient is there yet.

    A teacher adds as many logits, and its table; a stored one, probabilities in float32. One chunk of a distilling stage is no loop,
    and what it makes going forward is kept beside the gradient.
    """
    c, tokens = self.decoder, self.rows * self.length
    size = lambda d: jnp.dtype(d.dtype).itemsize
    table = lambda d: d.embed_dim * d.vocab_size * size(d)
    logits = lambda d: tokens * d.vocab_size * size(d)
    if self.chunks == 1 and not self.distils:
      return logits(c) + (2 * table(c) if self.split else 0)
    models = [c, self.teacher] if self.teacher else [c]
    chunk = sum(map(logits, models)) + (tokens * c.vocab_size * 4 if self.distils and not self.teacher else 0)
    chunk = chunk // self.chunks + (logits(c) if self.chunks == 1 else 0)
    return chunk + sum(map(table, models)) + tokens * c.embed_dim * 4

  def _layer(self, c, model_config, columns: int) -> int:
    """All that a layer of `c` keeps when nothing is recomputed, its weights (`columns` of its width) and their gradients."""
    one, two = (self._kept(model_config, n) for n in (1, 2))
    return _bytes(two) - _bytes(one) + 2 * c.embed_dim * columns * jnp.dtype(c.dtype).itemsize


def _local(c, tensor: int):
  """A decoder's part on one of `tensor` ranks."""
  return dataclasses.replace(
      c, num_heads=c.num_heads // tensor, num_kv_heads=c.num_kv_heads // tensor, mlp_dim=c.mlp_dim // tensor, vocab_size=c.vocab_size // tensor)


def _bytes(leaves) -> int:
  return sum(math.prod(x.shape) * x.dtype.itemsize for x in leaves)
