"""The miniature's architecture written plainly in torch, with our parameters: the peer of train_step.py.

Shapes: B rows, S sequence, R row groups, T tile slots, N tiles, P patches, D width, H heads, d head size.
"""

import torch
from torch import nn
from torch.nn import functional as F


def _parameter(x):
  return nn.Parameter(torch.tensor(x).contiguous())


def _matrix(x):
  """[in..., out...] of ours, heads folded, as nn.Linear's [out, in]."""
  return _parameter(x.T.copy())


class Norm(nn.Module):

  def __init__(self, scale, eps):
    super().__init__()
    self.scale, self.eps = _parameter(scale), eps

  def forward(self, x):
    return F.rms_norm(x, x.shape[-1:], self.scale, self.eps)


class Layer(nn.Module):
  """One decoder layer."""

  def __init__(self, p, c):
    super().__init__()
    self.c, D = c, c.embed_dim
    self.norm1, self.norm2 = Norm(p["attention_norm/scale"], c.norm_eps), Norm(p["mlp_norm/scale"], c.norm_eps)
    self.q_norm, self.k_norm = Norm(p["attention/q_norm/scale"], c.norm_eps), Norm(p["attention/k_norm/scale"], c.norm_eps)
    self.q, self.k, self.v = (_matrix(p[f"attention/{n}"].reshape(D, -1)) for n in "qkv")
    self.o = _matrix(p["attention/o"].reshape(-1, D))
    self.gate, self.up, self.down = (_matrix(p[f"mlp/{n}"]) for n in ("gate", "up", "down"))

  def forward(self, x, cos, sin, mask):
    c, (B, S, _) = self.c, x.shape
    y = self.norm1(x)
    q = self.q_norm(F.linear(y, self.q).view(B, S, c.num_heads, c.head_dim)).transpose(1, 2)
    k = self.k_norm(F.linear(y, self.k).view(B, S, c.num_kv_heads, c.head_dim)).transpose(1, 2)
    v = F.linear(y, self.v).view(B, S, c.num_kv_heads, c.head_dim).transpose(1, 2)
    y = F.scaled_dot_product_attention(_rotate(q, cos, sin), _rotate(k, cos, sin), v, attn_mask=mask, enable_gqa=True)
    x = x + F.linear(y.transpose(1, 2).reshape(B, S, -1), self.o)
    y = self.norm2(x)
    return x + F.linear(F.silu(F.linear(y, self.gate)) * F.linear(y, self.up), self.down)


def _rotate(x, cos, sin):
  first, second = x.chunk(2, dim=-1)
  return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


class VisionLayer(nn.Module):

  def __init__(self, p, c):
    super().__init__()
    D = c.embed_dim
    self.heads, self.eps = c.num_heads, c.norm_eps
    self.norms = nn.ParameterList(_parameter(p[f"{n}/{part}"]) for n in ("attention_norm", "mlp_norm") for part in ("scale", "bias"))
    self.qkv = nn.ParameterList(_matrix(p[f"attention/{n}"].reshape(D, D)) for n in "qkv")
    self.qkv_bias = nn.ParameterList(_parameter(p[f"attention/{n}_bias"].reshape(D)) for n in "qkv")
    self.o, self.o_bias = _matrix(p["attention/o"].reshape(D, D)), _parameter(p["attention/o_bias"])
    self.up, self.up_bias = _matrix(p["mlp/up"]), _parameter(p["mlp/up_bias"])
    self.down, self.down_bias = _matrix(p["mlp/down"]), _parameter(p["mlp/down_bias"])

  def forward(self, x):
    N, P, D = x.shape
    y = F.layer_norm(x, (D,), self.norms[0], self.norms[1], self.eps)
    q, k, v = (F.linear(y, w, b).view(N, P, self.heads, -1).transpose(1, 2) for w, b in zip(self.qkv, self.qkv_bias))
    y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(N, P, D)
    x = x + F.linear(y, self.o, self.o_bias)
    y = F.layer_norm(x, (D,), self.norms[2], self.norms[3], self.eps)
    return x + F.linear(F.gelu(F.linear(y, self.up, self.up_bias), approximate="tanh"), self.down, self.down_bias)


def _layer(flat, prefix, i):
  return {p.removeprefix(prefix): v[i] for p, v in flat.items() if p.startswith(prefix)}


class Peer(nn.Module):
  """Built from our config and flat numpy parameters; `forward(batch)` is the mean loss."""

  def __init__(self, config, flat):
    super().__init__()
    self.config, d, v = config, config.decoder, config.vision
    self.embedding = _parameter(flat["decoder/embedding"])
    self.layers = nn.ModuleList(Layer(_layer(flat, "decoder/layers/", i), d) for i in range(d.num_layers))
    self.final_norm = Norm(flat["decoder/final_norm/scale"], d.norm_eps)
    kernel = flat["vision/patch"].reshape(v.patch_size, v.patch_size, 3, v.embed_dim).transpose(3, 2, 0, 1)
    self.patch, self.patch_bias = _parameter(kernel.copy()), _parameter(flat["vision/patch_bias"])
    self.position = _parameter(flat["vision/position"])
    self.vision = nn.ModuleList(VisionLayer(_layer(flat, "vision/layers/", i), v) for i in range(v.num_layers))
    self.vision_norm = nn.ParameterList(_parameter(flat[f"vision/final_norm/{n}"]) for n in ("scale", "bias"))
    self.up, self.up_bias = _matrix(flat["adapter/up"]), _parameter(flat["adapter/up_bias"])
    self.down, self.down_bias = _matrix(flat["adapter/down"]), _parameter(flat["adapter/down_bias"])
    self.tile_places = _parameter(flat["adapter/tile_places"])

  def visual_tokens(self, tiles, places):
    v, m, g = self.config.vision, self.config.adapter.merge, self.config.vision.grid
    x = tiles.flatten(0, 1).permute(0, 3, 1, 2).float() / 127.5 - 1.0
    x = F.conv2d(x, self.patch, self.patch_bias, stride=v.patch_size).flatten(2).transpose(1, 2) + self.position
    for layer in self.vision:
      x = layer(x)
    x = F.layer_norm(x, x.shape[-1:], *self.vision_norm, v.norm_eps)
    N, _, D = x.shape
    x = x.view(N, g // m, m, g // m, m, D).permute(0, 1, 3, 2, 4, 5).reshape(N, -1, m * m * D)
    x = F.linear(x, self.up, self.up_bias) + self.tile_places[places.flatten()][:, None]
    x = F.linear(F.gelu(x, approximate="tanh"), self.down, self.down_bias)
    return x.view(tiles.shape[0], -1, x.shape[-1])

  def forward(self, b):
    d = self.config.decoder
    x = F.embedding(b["tokens"], self.embedding)
    if b["tiles"].shape[1]:
      visual = self.visual_tokens(b["tiles"], b["tile_places"])
      R, (B, S) = visual.shape[0], b["tokens"].shape
      index = b["vision_index"].clamp(min=0).view(R, -1, 1).expand(-1, -1, x.shape[-1])
      x = torch.where(b["vision_index"][..., None] >= 0, visual.gather(1, index).view(B, S, -1), x)
    inverse = d.rope_theta ** (-torch.arange(0, d.head_dim, 2, dtype=torch.float32) / d.head_dim)
    angle = b["positions"][:, None, :, None] * inverse
    cos, sin = angle.cos(), angle.sin()
    segments, positions = b["segment_ids"], b["positions"]
    mask = (segments[:, :, None] == segments[:, None]) & (positions[:, :, None] >= positions[:, None])
    for layer in self.layers:
      x = layer(x, cos, sin, mask[:, None])
    logits = F.linear(self.final_norm(x), self.embedding)
    losses = F.cross_entropy(logits.flatten(0, 1), b["targets"].flatten().long(), reduction="none")
    return (losses * b["loss_weights"].flatten()).sum() / b["loss_weights"].sum()
