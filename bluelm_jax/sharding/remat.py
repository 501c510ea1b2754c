"""Rematerialisation policies by name."""

import jax

# What attention and the decoder's layers name with `jax.ad_checkpoint.checkpoint_name`.
SAVED = ("attention_out", "attention_lse", "mlp_in")
_ATTENTION = jax.checkpoint_policies.save_only_these_names("attention_out", "attention_lse")

_POLICIES = {
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.checkpoint_dots,
    "dots_no_batch": jax.checkpoint_policies.save_from_both_policies(
        jax.checkpoint_policies.checkpoint_dots_with_no_batch_dims, _ATTENTION),
    "names": jax.checkpoint_policies.save_only_these_names(*SAVED),
    "offload": jax.checkpoint_policies.save_and_offload_only_these_names(
        names_which_can_be_saved=[], names_which_can_be_offloaded=list(SAVED), offload_src="device", offload_dst="pinned_host"),
}


POLICIES = ("none", *_POLICIES)


def policy(name: str):
  """The jax.checkpoint policy called `name`, or None for "none" (save everything).

  "full" saves nothing but each layer's input, "dots" the results of matrix products, "dots_no_batch" only those
  of products with weights, and attention's; "names" each layer's attention output and MLP input; "offload" keeps
  the same as "names", in host memory.
  """
  if name == "none":
    return None
  if name not in _POLICIES:
    raise ValueError(f"remat policy {name!r} is unknown; use {', '.join(POLICIES)}")
  return _POLICIES[name]
