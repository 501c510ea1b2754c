"""Named model configurations.

The paper publishes no dimensions of BlueLM-2.5-3B's language model: those of `bluelm_2_5_3b` and
`bluelm_7b_teacher` are ours, chosen to meet its published totals (2.9 B, of which the vision tower
is SigLIP2 so400m-patch14-384) and so that the student's widths are sub-selections of the teacher's.
"""

from bluelm_jax.models.config import AdapterConfig
from bluelm_jax.models.config import AnyResConfig
from bluelm_jax.models.config import BlueLMConfig
from bluelm_jax.models.config import DecoderConfig
from bluelm_jax.models.config import VisionConfig


def siglip2_so400m() -> VisionConfig:
  """SigLIP2 so400m-patch14-384: 412,987,248 parameters without its pooling head."""
  return VisionConfig(
      image_size=384, patch_size=14, embed_dim=1152, num_layers=27, num_heads=16, mlp_dim=4304,
      dtype="bfloat16", remat="full")


def bluelm_2_5_3b() -> BlueLMConfig:
  decoder = DecoderConfig(
      vocab_size=100_096, num_layers=32, embed_dim=2560, num_heads=16, num_kv_heads=4, head_dim=128,
      mlp_dim=7296, context=4096, tie_embeddings=True, dtype="bfloat16", remat="full")
  return BlueLMConfig(
      vision=siglip2_so400m(), adapter=AdapterConfig(), decoder=decoder, anyres=AnyResConfig(tile_size=378))


def bluelm_7b_teacher() -> DecoderConfig:
  return DecoderConfig(
      vocab_size=100_096, num_layers=32, embed_dim=4096, num_heads=32, num_kv_heads=8, head_dim=128,
      mlp_dim=14336, context=4096, dtype="bfloat16", remat="full")


def small() -> BlueLMConfig:
  """About 100 M parameters, for one GPU."""
  vision = VisionConfig(image_size=224, patch_size=14, embed_dim=384, num_layers=8, num_heads=6, mlp_dim=1536, dtype="bfloat16")
  decoder = DecoderConfig(
      vocab_size=1152, num_layers=12, embed_dim=768, num_heads=12, num_kv_heads=4, head_dim=64, mlp_dim=2048,
      context=2048, qk_norm=True, tie_embeddings=True, dtype="bfloat16")
  return BlueLMConfig(
      vision=vision, adapter=AdapterConfig(tile_places=5), decoder=decoder,
      anyres=AnyResConfig(tile_size=224, max_rows=2, max_cols=2, thumbnail=True))


def miniature_teacher() -> DecoderConfig:
  """A language model of which the miniature's is a sub-selection, in width and depth."""
  return DecoderConfig(
      vocab_size=1152, num_layers=4, embed_dim=192, num_heads=6, num_kv_heads=3, head_dim=32, mlp_dim=576,
      context=512, rope_theta=100_000.0, qk_norm=True, tie_embeddings=True, scan_layers=False)


def miniature() -> BlueLMConfig:
  """Trains in minutes on two CPU cores: unrolled, float32."""
  vision = VisionConfig(
      image_size=112, patch_size=8, embed_dim=96, num_layers=2, num_heads=2, mlp_dim=256, scan_layers=False)
  decoder = DecoderConfig(
      vocab_size=1152, num_layers=3, embed_dim=128, num_heads=4, num_kv_heads=2, head_dim=32, mlp_dim=384,
      context=512, rope_theta=100_000.0, qk_norm=True, tie_embeddings=True, scan_layers=False)
  return BlueLMConfig(
      vision=vision, adapter=AdapterConfig(tile_places=5), decoder=decoder,
      anyres=AnyResConfig(tile_size=112, max_rows=2, max_cols=2))


PRESETS = {
    f.__name__: f
    for f in (siglip2_so400m, bluelm_2_5_3b, bluelm_7b_teacher, small, miniature_teacher, miniature)}
