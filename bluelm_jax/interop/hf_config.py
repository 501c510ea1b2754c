"""config.json of HuggingFace models to our configurations, and back."""

import json
import math
import pathlib

from bluelm_jax.kernels.rotary import RopeScaling
from bluelm_jax.models.config import DecoderConfig
from bluelm_jax.models.config import VisionConfig

DECODERS = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
VISION = ("siglip_vision_model", "siglip")
_REQUIRED = object()
_KINDS = {int: "a whole number", float: "a number", bool: "true or false", dict: "an object"}


def load(directory) -> DecoderConfig | VisionConfig:
  """The configuration of a HuggingFace directory.

  Raises:
    ValueError: names config.json and a broken value, an unknown family, or a feature we do not have.
  """
  path = pathlib.Path(directory) / "config.json"
  values = _read(path)
  try:
    return _parse(values)
  except ValueError as e:
    raise ValueError(f"{path}: {e}") from e


def end_ids(directory) -> tuple[int, ...]:
  """The token ids that end an answer, by generation_config.json or else config.json; none where neither says."""
  for path in (pathlib.Path(directory) / name for name in ("generation_config.json", "config.json")):
    ids = _read(path).get("eos_token_id") if path.is_file() else None
    if ids is not None:
      ids = ids if isinstance(ids, list) else [ids]
      if not all(type(i) is int and i >= 0 for i in ids):
        raise ValueError(f"{path}: eos_token_id must be a token id or a list of them, not {ids!r}")
      return tuple(ids)
  return ()


def _read(path: pathlib.Path) -> dict:
  try:
    values = json.loads(path.read_text("utf-8"))
  except (ValueError, RecursionError) as e:
    raise ValueError(f"{path} is not valid JSON; download it again") from e
  if not isinstance(values, dict):
    raise ValueError(f"{path} holds a {type(values).__name__}, not an object; download it again")
  return values


def _parse(values: dict) -> DecoderConfig | VisionConfig:
  kind = values.get("model_type")
  if isinstance(kind, str) and kind in DECODERS:
    return _decoder(values)
  if isinstance(kind, str) and kind in VISION:
    return _vision(_field(values, "vision_config", dict, values))
  raise ValueError(f"model_type {kind!r} is not supported; use {', '.join([*DECODERS, *VISION])}")


def _field(values: dict, name: str, kind: type, default=_REQUIRED, above: float = 0):
  """values[name], or `default` where it is absent; ValueError unless it is of `kind` and, if a number, finite and over `above`."""
  value = values.get(name, default)
  if value is _REQUIRED:
    raise ValueError(f"there is no {name!r}; add it")
  number = kind in (int, float)
  right = isinstance(value, (int, float) if kind is float else kind) and not (number and isinstance(value, bool))
  if not right or number and not above < value < (2**31 if kind is int else math.inf):
    raise ValueError(f"{name} must be {_KINDS[kind]}{f' over {above}' if number else ''}, not {value!r}; correct it")
  return value


def _optional(values: dict, name: str, kind: type):
  """None where it is absent or null."""
  return None if values.get(name) is None else _field(values, name, kind)


def _require(values: dict, **expected):
  for key, allowed in expected.items():
    if values.get(key, allowed) != allowed:
      raise ValueError(f"{key} = {values[key]!r} is not supported; it must be {allowed!r}")


def _decoder(v: dict) -> DecoderConfig:
  kind = v["model_type"]
  _require(v, hidden_act="silu", mlp_bias=False, use_sliding_window=False, pretraining_tp=1)
  if kind != "qwen2":
    _require(v, attention_bias=False)
  heads, width = _field(v, "num_attention_heads", int), _field(v, "hidden_size", int)
  rope = _rope(v)
  context = _field(v, "max_position_embeddings", int, 2048 if kind == "llama" else 32768)
  scaling = _scaling(rope, context)
  if scaling and scaling.kind == "yarn":  # some configs keep the length from before the scaling
    context = max(context, int(scaling.factor * scaling.original_context))
  head_dim = _optional(v, "head_dim", int) or (128 if kind == "qwen3" else width // heads)
  if not head_dim:
    raise ValueError(f"hidden_size {width} is smaller than num_attention_heads {heads}; correct it")
  return DecoderConfig(
      vocab_size=_field(v, "vocab_size", int), num_layers=_field(v, "num_hidden_layers", int), embed_dim=width, num_heads=heads,
      num_kv_heads=_optional(v, "num_key_value_heads", int) or heads, head_dim=head_dim,
      mlp_dim=_field(v, "intermediate_size", int), context=context, norm_eps=_field(v, "rms_norm_eps", float, 1e-6),
      rope_theta=float(_field(rope, "rope_theta", float, above=1)), rope_scaling=scaling, qk_norm=kind == "qwen3",
      qkv_bias=kind == "qwen2", tie_embeddings=_field(v, "tie_word_embeddings", bool, False))


def _rope(v: dict) -> dict:
  """The rotary settings as transformers 5 resolves them.

  rope_scaling hides rope_parameters; what lies at the top level fills gaps, but original_max_position_embeddings
  there goes before the one inside.
  """
  rope = v.get("rope_scaling") or v.get("rope_parameters") or {}
  if not isinstance(rope, dict) or any(isinstance(x, dict) for x in rope.values()):
    raise ValueError(f"rope_parameters must be an object of numbers and names, not {rope!r}; correct it")
  rope = {"rope_theta": 10_000.0, **{k: v[k] for k in ("rope_theta", "partial_rotary_factor") if k in v}, **rope}
  _require(rope, partial_rotary_factor=1.0)
  if "original_max_position_embeddings" in v:
    rope["original_max_position_embeddings"] = v["original_max_position_embeddings"]
  return rope


def _scaling(rope: dict, context: int) -> RopeScaling | None:
  kind = rope.get("rope_type", rope.get("type", "default"))
  if kind == "default":
    return None
  if kind not in ("linear", "llama3", "yarn"):
    raise ValueError(f"rope type {kind!r} is not supported; use default, linear, llama3 or yarn")
  if rope.get("mscale") or rope.get("mscale_all_dim"):
    raise ValueError("yarn with mscale is not supported; give attention_factor")
  names = ("beta_fast", "beta_slow", "attention_factor", "low_freq_factor", "high_freq_factor")
  given = {name: _field(rope, name, float) for name in names if rope.get(name) is not None}
  if rope.get("truncate") is not None:
    given["truncate"] = _field(rope, "truncate", bool)
  original = context if kind == "linear" else _field(rope, "original_max_position_embeddings", int, context)
  scaling = RopeScaling(kind, float(_field(rope, "factor", float)), original, **given)
  if kind == "llama3" and scaling.low_freq_factor >= scaling.high_freq_factor:
    raise ValueError("low_freq_factor must be below high_freq_factor; correct it")
  return scaling


def _vision(v: dict) -> VisionConfig:
  _require(v, hidden_act="gelu_pytorch_tanh", num_channels=3)
  # Defaults are transformers' own, which its saved configs may leave out.
  image_size, patch_size = _field(v, "image_size", int, 224), _field(v, "patch_size", int, 16)
  if patch_size > image_size:
    raise ValueError(f"patch_size {patch_size} is larger than image_size {image_size}; correct it")
  return VisionConfig(
      image_size=image_size, patch_size=patch_size, embed_dim=_field(v, "hidden_size", int, 768),
      num_layers=_field(v, "num_hidden_layers", int, 12), num_heads=_field(v, "num_attention_heads", int, 12),
      mlp_dim=_field(v, "intermediate_size", int, 3072), norm_eps=_field(v, "layer_norm_eps", float, 1e-6))


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
