"""config.json of HuggingFace models to our configurations, and back."""

import json
import pathlib

from bluelm_jax.kernels.rotary import RopeScaling
from bluelm_jax.models.config import DecoderConfig
from bluelm_jax.models.config import VisionConfig

DECODERS = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
VISION = ("siglip_vision_model", "siglip")


def read(directory) -> dict:
  path = pathlib.Path(directory) / "config.json"
  try:
    return json.loads(path.read_text())
  except ValueError as e:
    raise ValueError(f"{path} is not valid JSON; download it again") from e


def parse(values: dict, where) -> DecoderConfig | VisionConfig:
  """Raises ValueError for a family or a feature we do not have."""
  kind = values.get("model_type")
  if kind in DECODERS:
    return _decoder(values, where)
  if kind in VISION:
    return _vision(values.get("vision_config", values), where)
  raise ValueError(f"{where}: model_type {kind!r} is not supported; use {', '.join([*DECODERS, *VISION])}")


def _require(values: dict, where, **expected):
  for key, allowed in expected.items():
    if values.get(key, allowed[0]) not in allowed:
      raise ValueError(f"{where}: {key} = {values[key]!r} is not supported; it must be {allowed[0]!r}")


def _need(values: dict, where, key: str):
  if key not in values:
    raise ValueError(f"{where}: config.json has no {key!r}; add it")
  return values[key]


def _decoder(v: dict, where) -> DecoderConfig:
  kind = v["model_type"]
  _require(v, where, hidden_act=("silu",), mlp_bias=(False,), use_sliding_window=(False,), pretraining_tp=(1,))
  if kind != "qwen2":
    _require(v, where, attention_bias=(False,))
  heads, width = _need(v, where, "num_attention_heads"), _need(v, where, "hidden_size")
  rope = v.get("rope_parameters") or {**(v.get("rope_scaling") or {}), "rope_theta": v.get("rope_theta", 10_000.0)}
  _require(rope, where, partial_rotary_factor=(1.0,))
  context = v.get("max_position_embeddings", 2048)
  scaling = _scaling(rope, context, where)
  if scaling and scaling.kind == "yarn":  # some configs keep the length from before the scaling
    context = max(context, int(scaling.factor * scaling.original_context))
  return DecoderConfig(
      vocab_size=_need(v, where, "vocab_size"), num_layers=_need(v, where, "num_hidden_layers"), embed_dim=width, num_heads=heads,
      num_kv_heads=v.get("num_key_value_heads") or heads, head_dim=v.get("head_dim") or (128 if kind == "qwen3" else width // heads),
      mlp_dim=_need(v, where, "intermediate_size"), context=context, norm_eps=v.get("rms_norm_eps", 1e-6),
      rope_theta=float(rope.get("rope_theta", 10_000.0)), rope_scaling=scaling, qk_norm=kind == "qwen3",
      qkv_bias=kind == "qwen2", tie_embeddings=v.get("tie_word_embeddings", False))


def _scaling(rope: dict, context: int, where) -> RopeScaling | None:
  kind = rope.get("rope_type", rope.get("type", "default"))
  if kind == "default":
    return None
  if kind not in ("linear", "llama3", "yarn"):
    raise ValueError(f"{where}: rope type {kind!r} is not supported; use default, linear, llama3 or yarn")
  if rope.get("mscale") or rope.get("mscale_all_dim"):
    raise ValueError(f"{where}: yarn with mscale is not supported; give attention_factor")
  names = {
      "beta_fast": "beta_fast", "beta_slow": "beta_slow", "attention_factor": "attention_factor", "low_freq_factor": "low_freq_factor",
      "high_freq_factor": "high_freq_factor", "truncate": "truncate"}
  given = {ours: rope[theirs] for theirs, ours in names.items() if rope.get(theirs) is not None}
  return RopeScaling(kind, float(rope["factor"]), rope.get("original_max_position_embeddings") or context, **given)


def _vision(v: dict, where) -> VisionConfig:
  _require(v, where, hidden_act=("gelu_pytorch_tanh",), num_channels=(3,))
  # Defaults are transformers' own, which its saved configs may leave out.
  return VisionConfig(
      image_size=v.get("image_size", 224), patch_size=v.get("patch_size", 16), embed_dim=v.get("hidden_size", 768),
      num_layers=v.get("num_hidden_layers", 12), num_heads=v.get("num_attention_heads", 12), mlp_dim=v.get("intermediate_size", 3072),
      norm_eps=v.get("layer_norm_eps", 1e-6))


def decoder_family(c: DecoderConfig) -> str:
  if c.qk_norm and c.qkv_bias:
    raise ValueError("no HuggingFace family has both qk_norm and qkv_bias; export needs one of them off")
  return "qwen3" if c.qk_norm else "qwen2" if c.qkv_bias else "llama"


def export_decoder(c: DecoderConfig, dtype: str) -> dict:
  family = decoder_family(c)
  if family == "qwen2" and c.head_dim * c.num_heads != c.embed_dim:
    raise ValueError(f"Qwen2 needs head_dim = width / heads; this model has {c.head_dim} and {c.embed_dim} / {c.num_heads}")
  rope = {"rope_theta": c.rope_theta, "rope_type": "default"}
  if s := c.rope_scaling:
    rope |= {"rope_type": s.kind, "factor": s.factor}
    if s.kind != "linear":
      rope["original_max_position_embeddings"] = s.original_context
    if s.kind == "llama3":
      rope |= {"low_freq_factor": s.low_freq_factor, "high_freq_factor": s.high_freq_factor}
    if s.kind == "yarn":
      rope |= {"beta_fast": s.beta_fast, "beta_slow": s.beta_slow, "truncate": s.truncate}
      if s.attention_factor is not None:
        rope["attention_factor"] = s.attention_factor
  scaling = {k: v for k, v in rope.items() if k != "rope_theta"} if c.rope_scaling else None
  values = {
      "architectures": [DECODERS[family]], "model_type": family, "vocab_size": c.vocab_size, "num_hidden_layers": c.num_layers,
      "hidden_size": c.embed_dim, "num_attention_heads": c.num_heads, "num_key_value_heads": c.num_kv_heads,
      "intermediate_size": c.mlp_dim, "max_position_embeddings": c.context, "rms_norm_eps": c.norm_eps, "hidden_act": "silu",
      "tie_word_embeddings": c.tie_embeddings, "torch_dtype": dtype,
      # Both forms: transformers 4 reads the first two, 5 the third.
      "rope_theta": c.rope_theta, "rope_scaling": scaling, "rope_parameters": rope}
  if family != "qwen2":
    values |= {"head_dim": c.head_dim, "attention_bias": False}
  return values


def export_vision(c: VisionConfig, dtype: str) -> dict:
  return {
      "architectures": ["SiglipVisionModel"], "model_type": "siglip_vision_model", "image_size": c.image_size, "patch_size": c.patch_size,
      "hidden_size": c.embed_dim, "num_hidden_layers": c.num_layers, "num_attention_heads": c.num_heads, "intermediate_size": c.mlp_dim,
      "layer_norm_eps": c.norm_eps, "hidden_act": "gelu_pytorch_tanh", "num_channels": 3, "torch_dtype": dtype, "vision_use_head": False}
