"""SigLIP / SigLIP 2 vision tower (fixed resolution, no pooling head).

Shapes: N images, I image side, P patches, D width, H heads, d head size.
"""

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp

from bluelm_jax.models import layers
from bluelm_jax.models.config import VisionConfig
from bluelm_jax.sharding import attend
from bluelm_jax.sharding import remat
from bluelm_jax.sharding import rules


class VisionAttention(nn.Module):
  config: VisionConfig

  @nn.compact
  def __call__(self, x_NPD):
    c = self.config
    D, H, d = c.embed_dim, c.num_heads, c.embed_dim // c.num_heads
    projected = []
    for name in ("q", "k", "v"):
      weight = layers.param(self, name, (D, H, d), ("vision_embed", "vision_heads", "head_dim"), D)
      bias = layers.param(self, f"{name}_bias", (H, d), ("vision_heads", "head_dim"), None, 0.0)
      projected.append(jnp.einsum("npd,dhk->nphk", x_NPD, weight) + bias)
    out = attend.attention(*projected, causal=False, rows="tiles", heads="vision_heads", implementation=c.attention)
    weight = layers.param(self, "o", (H, d, D), ("vision_heads", "head_dim", "vision_embed"), D, (2 * c.num_layers) ** -0.5)
    # As a matrix: the sum of its gradient over devices is then a reduce-scatter (an all-reduce of what has heads apart).
    flat = einops.rearrange(out, "n p h k -> n p (h k)") @ weight.reshape(D, D)
    return flat + layers.param(self, "o_bias", (D,), ("norm",), None, 0.0)


class VisionMLP(nn.Module):
  config: VisionConfig

  @nn.compact
  def __call__(self, x_NPD):
    c = self.config
    up = layers.param(self, "up", (c.embed_dim, c.mlp_dim), ("vision_embed", "vision_mlp"), c.embed_dim)
    down = layers.param(self, "down", (c.mlp_dim, c.embed_dim), ("vision_mlp", "vision_embed"), c.mlp_dim, (2 * c.num_layers) ** -0.5)
    x = layers.product(x_NPD, up) + layers.param(self, "up_bias", (c.mlp_dim,), ("vision_mlp",), None, 0.0)
    return layers.product(jax.nn.gelu(x, approximate=True), down) + layers.param(self, "down_bias", (c.embed_dim,), ("norm",), None, 0.0)


class VisionBlock(nn.Module):
  config: VisionConfig

  @nn.compact
  def __call__(self, x_NPD, _):
    c = self.config
    x_NPD = x_NPD + VisionAttention(c, name="attention")(layers.LayerNorm(c, name="attention_norm")(x_NPD))
    x_NPD = x_NPD + VisionMLP(c, name="mlp")(layers.LayerNorm(c, name="mlp_norm")(x_NPD))
    layers.Tap(name="tiles")(x_NPD)
    return rules.constrain(x_NPD, "tiles", None, None), None


class VisionTower(nn.Module):
  """uint8 pixels [N, I, I, 3] (or floats already in [-1, 1]) -> hidden states [N, P, D]."""

  config: VisionConfig

  @nn.compact
  def __call__(self, pixels_NIIC):
    c = self.config
    x = pixels_NIIC
    if x.dtype == jnp.uint8:
      x = x.astype(c.dtype) / 127.5 - 1.0  # mean and std 0.5
    p, g = c.patch_size, c.grid
    x = einops.rearrange(x[:, : p * g, : p * g], "n (gy py) (gx px) c -> n (gy gx) (py px c)", py=p, px=p)
    # The patch "convolution" as one product: kernel rows run over (y, x, channel).
    kernel = layers.param(self, "patch", (p * p * 3, c.embed_dim), ("patch", "vision_embed"), p * p * 3)
    x = x.astype(c.dtype) @ kernel + layers.param(self, "patch_bias", (c.embed_dim,), ("norm",), None, 0.0)
    x = x + layers.param(self, "position", (g * g, c.embed_dim), ("position", "vision_embed"), c.embed_dim)
    x, _ = layers.stacked(VisionBlock, c, c.num_layers, remat.policy(c.remat), nn.broadcast)(c, name="layers")(x, None)
    return layers.LayerNorm(c, name="final_norm")(x)
