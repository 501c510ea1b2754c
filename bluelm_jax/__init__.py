"""bluelm_jax: train, post-train, evaluate and serve a BlueLM-2.5-3B-class multimodal model in JAX."""

__version__ = "0.1.0"


def __getattr__(name):
  # Loaded on first use: importing the package stays fast and touches no device.
  if name == "load_pretrained":
    from bluelm_jax.interop.load import load_pretrained

    return load_pretrained
  raise AttributeError(f"module 'bluelm_jax' has no attribute {name!r}")
