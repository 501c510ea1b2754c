"""BlueLM: vision tower + adapter + decoder.

Shapes: R row groups, T tile slots of a group, N tokens a tile, P patches, B rows, S sequence, D width.
"""

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp

from bluelm_jax.models import layers
from bluelm_jax.models.config import BlueLMConfig
from bluelm_jax.models.decoder import Decoder
from bluelm_jax.models.decoder import PagedCache
from bluelm_jax.models.decoder import default_positions
from bluelm_jax.models.decoder import logits
from bluelm_jax.models.vision import VisionTower
from bluelm_jax.sharding import rules


class Adapter(nn.Module):
  """Patch features [N, P, D_vision] -> tokens [N, (grid / merge)^2, D]: pad, merge neighbours, 2-layer MLP."""

  config: object  # the decoder's, for dtypes
  grid: int
  merge: int
  hidden_dim: int
  tile_places: int = 0

  @nn.compact
  def __call__(self, x_NPD, places_N=None):
    g, m = self.grid, self.merge
    side = -(-g // m)
    x = einops.rearrange(x_NPD, "n (y x) d -> n y x d", y=g)
    x = jnp.pad(x, ((0, 0), (0, side * m - g), (0, side * m - g), (0, 0)))
    x = einops.rearrange(x, "n (y my) (x mx) d -> n (y x) (my mx d)", my=m, mx=m)
    F, D = self.hidden_dim, self.config.embed_dim
    up = layers.param(self, "up", (x.shape[-1], F), ("vision_embed", "vision_mlp"), x.shape[-1])
    down = layers.param(self, "down", (F, D), ("vision_mlp", "vision_embed"), F)
    x = layers.product(x.astype(self.config.dtype), up) + layers.param(self, "up_bias", (F,), ("vision_mlp",), None, 0.0)
    if self.tile_places:
      table = layers.param(self, "tile_places", (self.tile_places, F), ("position", "vision_mlp"), 1)
      x += table[jnp.zeros(x.shape[0], jnp.int32) if places_N is None else places_N][:, None]
    x = jax.nn.gelu(x)
    return layers.product(x, down) + layers.param(self, "down_bias", (D,), ("norm",), None, 0.0)


class BlueLM(nn.Module):
  """tokens (+ tiles) -> logits [B, S, V]."""

  config: BlueLMConfig

  def setup(self):
    c = self.config
    hidden_dim = c.adapter.hidden_dim or c.decoder.embed_dim
    self.vision = VisionTower(c.vision)
    self.adapter = Adapter(c.decoder, c.vision.grid, c.adapter.merge, hidden_dim, c.adapter.tile_places)
    self.decoder = Decoder(c.decoder)

  def encode_tiles(self, tiles_RTHWC, tile_places_RT=None):
    """uint8 tiles [R, T, H, W, 3] and their places int32 [R, T] -> visual tokens [R, T * N, D]."""
    R, T = tiles_RTHWC.shape[:2]
    places_N = None if tile_places_RT is None else tile_places_RT.reshape(R * T)
    # Every device encodes as many tiles; their tokens are then gathered inside their group of rows.
    tiles = rules.constrain(tiles_RTHWC.reshape(R * T, *tiles_RTHWC.shape[2:]), "tiles", None, None, None)
    tokens = rules.constrain(self.adapter(self.vision(tiles), places_N), "tiles", None, None)
    return rules.constrain(tokens.reshape(R, T * tokens.shape[1], tokens.shape[2]), "batch", None, None)

  def embed(self, tokens_BS, visual_RXD=None, vision_index_BS=None):
    """Token embeddings, with visual tokens of the row's own group where vision_index >= 0."""
    x_BSD = self.decoder.embed(tokens_BS)
    if visual_RXD is None:
      return x_BSD
    B, S = tokens_BS.shape
    R = visual_RXD.shape[0]
    index_RI = jnp.maximum(vision_index_BS, 0).reshape(R, B // R * S)
    placed = jnp.take_along_axis(visual_RXD, index_RI[..., None], axis=1).reshape(x_BSD.shape)
    return jnp.where(vision_index_BS[..., None] >= 0, placed.astype(x_BSD.dtype), x_BSD)

  def name_visual_tokens(self, tiles_RTHWC, vision_index_BS, tile_places_RT=None):
    """(states [B, S, D], output table [D, V]): their product says which token each position's visual token resembles.

    The decoder's layers are left out.
    """
    visual = self.encode_tiles(tiles_RTHWC, tile_places_RT)
    x_BSD = self.embed(jnp.zeros_like(vision_index_BS), visual, vision_index_BS)
    return self.decoder.final_norm(x_BSD), self.decoder.output_table()  # normed, as every layer reads it

  def readout(
      self, tokens, positions=None, segment_ids=None, tiles=None, vision_index=None, tile_places=None, cache: PagedCache | None = None, visual=None,
  ):
    """The decoder's `readout`; the arguments are those of `__call__`, but `visual` may hold what `encode_tiles` gave before."""
    if (tiles is None and visual is None) != (vision_index is None):
      raise ValueError("tiles and vision_index belong together; pass both or neither")
    if tiles is not None and tiles.shape[1]:
      visual = self.encode_tiles(tiles, tile_places)
    positions, segment_ids = default_positions(tokens, positions, segment_ids, cache)
    x_BSD = self.embed(tokens, visual, vision_index)
    x_BSD, cache = self.decoder.hidden(x_BSD, positions, segment_ids, cache)
    return x_BSD, self.decoder.output_table(), cache

  def __call__(self, tokens, positions=None, segment_ids=None, tiles=None, vision_index=None, tile_places=None, cache: PagedCache | None = None):
    """Returns logits, or (logits, cache) when a cache is given.

    Args:
      tokens, positions, segment_ids: as for the decoder.
      tiles: uint8 [R, T, H, W, 3], or None for text.
      vision_index: int32 [B, S], required with tiles; see `data.batch.PackedBatch`.
      tile_places: int32 [R, T], read by an adapter with a tile table.
    """
    x_BSD, table_DV, cache_out = self.readout(tokens, positions, segment_ids, tiles, vision_index, tile_places, cache)
    logits_BSV = logits(x_BSD, table_DV)
    return logits_BSV if cache is None else (logits_BSV, cache_out)

  def init_all(self, tokens):
    """Touches every parameter; for `init` and `eval_shape`."""
    tile = self.config.vision.image_size
    self.encode_tiles(jnp.zeros((1, 1, tile, tile, 3), jnp.uint8))
    return self(tokens)
