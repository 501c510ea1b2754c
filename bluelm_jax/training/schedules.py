"""Learning rates over the steps of a stage, or of several stages that share one decay."""

import math

import optax

_SHAPE = ("kind", "warmup", "decay_share", "final", "horizon")  # what stages that share a decay must agree on


def make(config, peak: float, steps: int) -> optax.Schedule:
  """step of this stage -> learning rate.

  A decay may run through several stages. It is `horizon` steps long, its warm-up included, and this stage begins
  `offset` steps into it, so that the stages together go down the curve that one long stage would.

  Args:
    config: kind, warmup, decay_share, final, horizon and offset; see training.defaults.
    steps: of this stage, with whose last step the decay ends if `horizon` is 0.
  """
  whole = _whole(config, peak, config.horizon or config.offset + steps)
  return (lambda step: whole(step + config.offset)) if config.offset else whole


def _whole(config, peak: float, steps: int) -> optax.Schedule:
  """From its first step to its last; after that it keeps its last rate."""
  warmup = min(config.warmup, steps)
  final = peak * config.final
  rest = max(steps - warmup, 1)
  if config.kind == "constant":
    body = optax.constant_schedule(peak)
  elif config.kind == "cosine":
    body = optax.cosine_decay_schedule(peak, rest, config.final)
  elif config.kind == "linear":
    body = optax.linear_schedule(peak, final, rest)
  elif config.kind == "wsd":
    decay = max(int(steps * config.decay_share), 1)
    body = optax.join_schedules([optax.constant_schedule(peak), optax.linear_schedule(peak, final, decay)], [max(rest - decay, 0)])
  elif config.kind == "multistep":
    # DeepSeek LLM (arXiv 2401.02954): down at 80 % and at 90 % of the steps, by equal factors: final = 0.1 makes 31.6 % and 10 %.
    levels = [optax.constant_schedule(peak * scale) for scale in (1.0, math.sqrt(config.final), config.final)]
    body = optax.join_schedules(levels, [max(steps * tenths // 10 - warmup, 0) for tenths in (8, 9)])
  else:
    raise ValueError(f"schedule kind {config.kind!r} is unknown; use constant, cosine, linear, wsd or multistep")
  return optax.join_schedules([optax.linear_schedule(0.0, peak, max(warmup, 1)), body], [warmup])


def join(stages) -> None:
  """Sets horizon and offset where stages share a decay: a stage that `continues`, and those before it back to one that does not.

  Args:
    stages: (name, stage config) in order; the configs are changed.

  Raises:
    ValueError: a first stage that continues, an offset of one that does, schedules of one decay that differ.
  """
  decays = []
  for name, config in stages:
    if not config.schedule.continues:
      decays.append([])
    elif not decays:
      raise ValueError(f"stages.{name}.schedule.continues is set, but {name} is the first stage; set schedule.offset and horizon instead")
    decays[-1].append((name, config))
  for (first, begun), *rest in decays:
    for name, config in rest:
      if config.schedule.offset:
        raise ValueError(f"stages.{name}.schedule.offset is set, but it continues and the steps before are counted; set one of the two")
      for key in _SHAPE:
        if config.schedule[key] != begun.schedule[key]:
          values = f"{config.schedule[key]} and there {begun.schedule[key]}"
          raise ValueError(f"stages.{name}.schedule continues that of {first}, but its {key} is {values}; set them alike")
    offset = begun.schedule.offset
    end = begun.schedule.horizon or offset + sum(c.steps for _, c in ((first, begun), *rest))
    for _, config in ((first, begun), *rest) if rest else ():
      config.schedule.update(offset=offset, horizon=end)
      offset += config.steps
