"""Rematerialisation policies by name."""

import jax

_POLICIES = {
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.checkpoint_dots,
    "dots_no_batch": jax.checkpoint_policies.checkpoint_dots_with_no_batch_dims,
}


def policy(name: str):
  """The jax.checkpoint policy called `name`, or None for "none" (save everything).

  "full" saves nothing, "dots" the results of matrix products, "dots_no_batch" only those of
  products with weights.
  """
  if name == "none":
    return None
  if name not in _POLICIES:
    raise ValueError(f"remat policy {name!r} is unknown; use none, {', '.join(_POLICIES)}")
  return _POLICIES[name]
