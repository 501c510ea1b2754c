"""What one client, and all together, may ask for."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Limits:
  """Each is a flag of `python -m bluelm_jax.serve`.

  Attributes:
    body_bytes: of a request's body.
    body_seconds: in which it must have come.
    text_characters: of all texts of a request.
    images: in a request.
    image_bytes: of an image's file.
    image_pixels: of an image.
    prompt_tokens: of a prompt, images included.
    new_tokens: of a sample; also what is generated at most where a request does not say.
    samples: of a request, over all its prompts.
    requests: waiting and running ones together; one more is sent away with 429.
    send_seconds: that a client may take to read what was sent to it.
    grace_seconds: that running requests get to end after SIGTERM.
  """

  body_bytes: int = 32 << 20
  body_seconds: float = 30.0
  text_characters: int = 1 << 20
  images: int = 16
  image_bytes: int = 16 << 20
  image_pixels: int = 25_000_000
  prompt_tokens: int = 32_768
  new_tokens: int = 8192
  samples: int = 64
  requests: int = 256
  send_seconds: float = 60.0
  grace_seconds: float = 30.0

  def __post_init__(self):
    for name, value in vars(self).items():
      if value <= 0:
        raise ValueError(f"limit {name} must be above 0, not {value}")
