"""DeepSeek's scaling laws (arXiv 2401.02954): batch size and learning rate for a compute budget.

The budget is C = M D: M non-embedding FLOPs a token, attention included and not halved, forward and backward; D
tokens. They are of text models trained with AdamW; the paper used them for its models of 7 and 67 B parameters.
"""

from bluelm_jax.models.config import DecoderConfig
from bluelm_jax.training import accumulate
from bluelm_jax.training import flops


def learning_rate(compute: float) -> float:
  return 0.3118 * compute**-0.1250


def batch_tokens(compute: float) -> float:
  """Of a step."""
  return 0.2920 * compute**0.3271


def model_flops(compute: float) -> float:
  """M of the model that uses the budget best."""
  return 0.1715 * compute**0.5243


def tokens(compute: float) -> float:
  """D for that model."""
  return 5.8316 * compute**0.4757


def flops_per_token(c: DecoderConfig, length: int) -> float:
  """M; for a Llama of l layers and width d, the paper's 72 l d^2 + 12 l d length."""
  products = flops.llm_per_token(c) - 2.0 * c.embed_dim * c.vocab_size
  return 3.0 * (products + flops.attention_per_pair(c) * length)


def stage_tokens(config) -> int:
  """D of a stage: its steps, and where it shares a decay, all of that, at the batches of its own ramp."""
  knots, end = config.data.accumulate, config.schedule.horizon or config.steps
  ends = [min(step, end) for step, _ in knots[1:]] + [end]
  steps = sum(count * (after - min(at, end)) for (at, count), after in zip(knots, ends))
  return steps * config.data.rows * config.data.length


def proposal(compute: float) -> list[tuple[str, str]]:
  """Lines of a report: what, and how much."""
  return [
      ("compute C", f"{compute:.3e} FLOPs"), ("learning rate", f"{learning_rate(compute):.3e}"), ("batch", f"{batch_tokens(compute):,.0f} tokens"),
      ("best model for C", f"{model_flops(compute):.3e} FLOPs a token"), ("best tokens for C", f"{tokens(compute):.3e}")]


def for_stage(config, model_config) -> list[tuple[str, str]]:
  """The proposal for the language model of a stage, beside what its config has."""
  decoder = getattr(model_config, "decoder", model_config)
  per_token, count, length = flops_per_token(decoder, config.data.length), stage_tokens(config), config.data.length
  compute, most = per_token * count, config.data.rows * accumulate.most(config.data.accumulate)
  return [
      *proposal(compute), ("rows for that batch", f"{batch_tokens(compute) / length:,.0f} of {length}"), ("its rows", f"{most:,} of {length}"),
      ("its learning rate", f"{config.optimizer.learning_rate:.3e}"), ("its model", f"{per_token:.3e} FLOPs a token"), ("its tokens", f"{count:.3e}")]
