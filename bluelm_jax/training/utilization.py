"""How busy the chips are: the model FLOPs of what a stage's batches hold, over the time its steps took."""

from typing import Sequence

from bluelm_jax.models.config import BlueLMConfig
from bluelm_jax.sharding import chips
from bluelm_jax.training import flops as flops_lib
from bluelm_jax.training import teacher as teacher_lib


class Meter:
  """Counts by `flops.train`: pairs that see each other, tokens that are not padding, tiles in use.

  The backward pass counts as far as it is made: twice the forward where weights are trained, once where a gradient only
  passes through a frozen part, not at all below the lowest trained part. A teacher's forward pass is in. What is
  computed again, by rematerialisation or for a loss in chunks, is not, and neither are the optimizer and norms.
  """

  def __init__(self, config, model_config, mesh):
    self._config, self._model_config = config, model_config
    self._teacher = teacher_lib.described(config, model_config)
    self._tokens_per_tile = model_config.tokens_per_tile if isinstance(model_config, BlueLMConfig) else 1
    self._devices = mesh.size
    chip = chips.CHIPS.get(mesh.devices.flat[0].device_kind)
    self._peak = chip and chip.flops

  def flops(self, counts) -> flops_lib.Flops:
    """Of a step, given the counts of `state.make_loss`."""
    tiles = float(counts["image_tokens"]) / self._tokens_per_tile
    work = flops_lib.Work(float(counts["tokens"]), float(counts["pairs"]), tiles)
    model, _ = flops_lib.train(self._model_config, self._config.trainable, work, self._config.objective)
    return model + flops_lib.forward(self._teacher, work) if self._teacher else model

  def rates(self, steps: Sequence[flops_lib.Flops], seconds: float) -> dict[str, float]:
    """TFLOP/s of a device over steps that took `seconds` together; of a chip whose bfloat16 peak is known also their share of it ("mfu").

    Where there are images, both also without the vision tower.
    """
    total = sum(f.total for f in steps)
    vision = sum(f.vision + f.vision_attention for f in steps)
    found = {}
    for suffix, flops in (("", total), ("_without_vision", total - vision)) if vision else (("", total),):
      rate = flops / max(seconds, 1e-9) / self._devices
      found[f"tflop_per_second_per_device{suffix}"] = rate / 1e12
      if self._peak:
        found[f"mfu{suffix}"] = rate / self._peak
    return found


def words(rates: dict[str, float]) -> str:
  """"123 TFLOP/s, MFU 12.5 %" of a device, for the progress line; without the second where no peak is known."""
  share = f", MFU {rates['mfu']:.1%}" if "mfu" in rates else ""
  giga = 1000 * rates["tflop_per_second_per_device"]
  return (f"{giga / 1000:.3g} TFLOP/s" if giga >= 100 else f"{giga:.2g} GFLOP/s") + share
