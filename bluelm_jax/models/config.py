"""Frozen descriptions of the models; no arrays here."""

import dataclasses

from bluelm_jax.kernels.rotary import RopeScaling


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
  """A Llama, Qwen2 (qkv_bias) or Qwen3 (qk_norm) decoder.

  Attributes:
    context: the longest sequence it is meant for, in tokens (after rope_scaling).
    scan_layers: True compiles one layer in a loop (small programs), False unrolls them (faster on CPU).
    remat: a policy name of `sharding.remat`.
    attention: an implementation name of `kernels.attention.api`.
    context_parallel: how a split sequence attends, a name of `kernels.attention.ring.STRATEGIES`.
    quantized: whether parameters of layers may be `models.quantized.Quantized`.
    dtype: of activations; parameters are cast to it where they are used.
  """

  vocab_size: int
  num_layers: int
  embed_dim: int
  num_heads: int
  num_kv_heads: int
  head_dim: int
  mlp_dim: int
  context: int = 4096
  norm_eps: float = 1e-6
  rope_theta: float = 10_000.0
  rope_scaling: RopeScaling | None = None
  qk_norm: bool = False
  qkv_bias: bool = False
  tie_embeddings: bool = False
  scan_layers: bool = True
  remat: str = "none"
  attention: str = "auto"
  context_parallel: str = "ring"
  quantized: bool = False
  dtype: str = "float32"
  param_dtype: str = "float32"

  def __post_init__(self):
    if self.num_heads % self.num_kv_heads:
      raise ValueError(f"num_heads {self.num_heads} must be a multiple of num_kv_heads {self.num_kv_heads}")
    if self.head_dim % 2:
      raise ValueError(f"head_dim {self.head_dim} must be even for rotary embeddings")


@dataclasses.dataclass(frozen=True)
class VisionConfig:
  """A SigLIP vision tower without its pooling head."""

  image_size: int  # pixels a side
  patch_size: int
  embed_dim: int
  num_layers: int
  num_heads: int
  mlp_dim: int
  norm_eps: float = 1e-6
  scan_layers: bool = True
  remat: str = "none"
  attention: str = "auto"
  dtype: str = "float32"
  param_dtype: str = "float32"

  def __post_init__(self):
    if self.embed_dim % self.num_heads:
      raise ValueError(f"vision embed_dim {self.embed_dim} must be a multiple of num_heads {self.num_heads}")

  @property
  def grid(self) -> int:
    """Patches a side; the convolution is "valid", so a remainder of pixels is not seen."""
    return self.image_size // self.patch_size


@dataclasses.dataclass(frozen=True)
class AdapterConfig:
  """merge x merge neighbours are concatenated (odd grids are zero-padded), then a 2-layer MLP."""

  merge: int = 2
  hidden_dim: int | None = None  # None: the decoder's embed_dim
  tile_places: int = 0  # rows of a table added in the hidden layer by the tile's place in its image; 0: no table

  def tokens_per_tile(self, grid: int) -> int:
    return (-(-grid // self.merge)) ** 2


@dataclasses.dataclass(frozen=True)
class AnyResConfig:
  """BlueLM-V-3B's dynamic tiling (arXiv 2411.10640).

  Attributes:
    tile_size: pixels a side of one tile; the ViT sees floor(tile / patch) patches of it.
    max_rows, max_cols: the largest grid.
    alpha: a candidate grid must keep this share more of the image's pixels to beat a smaller one.
      BlueLM's value is not published; 0 gives LLaVA-NeXT's rule.
    thumbnail: a global view as the first tile, for images of more than one tile.
  """

  tile_size: int
  max_rows: int = 4
  max_cols: int = 4
  alpha: float = 0.1
  thumbnail: bool = False

  @property
  def canvas(self) -> tuple[int, int]:
    """(width, height) in pixels of the largest grid."""
    return self.max_cols * self.tile_size, self.max_rows * self.tile_size


@dataclasses.dataclass(frozen=True)
class BlueLMConfig:
  """Vision tower, adapter and decoder, and how images are cut into tiles."""

  vision: VisionConfig
  adapter: AdapterConfig
  decoder: DecoderConfig
  anyres: AnyResConfig

  @property
  def tokens_per_tile(self) -> int:
    return self.adapter.tokens_per_tile(self.vision.grid)


# Fields that say how a model is computed, not which weights it has.
EXECUTION = ("scan_layers", "remat", "attention", "context_parallel", "quantized", "dtype")


def with_execution(config, **fields):
  """The config, and the configs inside it, with these EXECUTION fields where they have them."""
  assert set(fields) <= set(EXECUTION)
  own = {name: getattr(config, name) for name in (f.name for f in dataclasses.fields(config))}
  inner = {name: with_execution(value, **fields) for name, value in own.items() if isinstance(value, (DecoderConfig, VisionConfig))}
  return dataclasses.replace(config, **{name: value for name, value in fields.items() if name in own}, **inner)


def stretched(config, factor: float):
  """The config with its decoder's context `factor` times as long by YaRN (arXiv 2309.00071), counted from before any YaRN."""
  if isinstance(config, BlueLMConfig):
    return dataclasses.replace(config, decoder=stretched(config.decoder, factor))
  scaling = config.rope_scaling
  if scaling is not None and scaling.kind != "yarn":
    raise ValueError(f"yarn cannot stretch a model whose RoPE is scaled by {scaling.kind!r}; set yarn = 1")
  original = scaling.original_context if scaling else config.context
  scaling = dataclasses.replace(scaling, factor=factor) if scaling else RopeScaling("yarn", factor, original)
  return dataclasses.replace(config, context=round(factor * original), rope_scaling=scaling)


def same_weights(a, b) -> bool:
  """Whether a checkpoint of one config serves the other."""
  plain = dict(scan_layers=True, remat="none", attention="auto", context_parallel="ring", quantized=False, dtype="float32")
  return with_execution(a, **plain) == with_execution(b, **plain)
