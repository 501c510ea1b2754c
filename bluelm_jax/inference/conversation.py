"""A checkpoint that answers: weights, tokenizer and chat format together."""

import dataclasses
from typing import Iterator, Sequence

import numpy as np

from bluelm_jax.data import chat as chat_lib
from bluelm_jax.data import images
from bluelm_jax.data.batch import Example
from bluelm_jax.data.tokenizer import Tokenizer
from bluelm_jax.inference.generate import Generator
from bluelm_jax.inference.generate import Options
from bluelm_jax.interop import hf_config
from bluelm_jax.interop import load
from bluelm_jax.models.config import BlueLMConfig
from bluelm_jax.models.config import VisionConfig


class Speaker:
  """Answers prompts with the checkpoint in a directory.

  Uses the tokenizer's chat template, or the project's chat format where the tokenizer has its markers; any other
  model continues the prompt as plain text.
  """

  def __init__(self, directory):
    directory = load.checkpoint_directory(directory)
    model, params = load.load_pretrained(directory)
    config = model.config
    if isinstance(config, VisionConfig):
      raise ValueError(f"{directory} is a vision tower and cannot speak; give a language model or a BlueLM")
    self.tokenizer = Tokenizer(directory / "tokenizer.json", hf_config.end_ids(directory))
    vocab_size = getattr(config, "decoder", config).vocab_size
    if self.tokenizer.vocab_size > vocab_size:
      raise ValueError(f"tokenizer {self.tokenizer.path} has {self.tokenizer.vocab_size} tokens, the model {vocab_size}; use a matching tokenizer")
    multimodal = isinstance(config, BlueLMConfig)
    self.chat = chat_lib.ChatFormat(
        self.tokenizer, config.anyres if multimodal else None, config.tokens_per_tile if multimodal else 1)
    self.generator = Generator(model, params, self.tokenizer.end_ids)

  def reply(self, prompt: str, image_paths: Sequence[str], thinking: bool, options: Options) -> Iterator[str]:
    """Yields pieces of text as they come."""
    options = dataclasses.replace(options, banned=self._banned())
    shown = [{"type": "image", "image": images.read(p)} for p in image_paths]
    ids: list[int] = []
    text, written = "", 0
    for step in self.generator.stream([self._prompt(prompt, shown, thinking)], options):
      if int(step[0]) in self.tokenizer.end_ids:
        break
      ids.append(int(step[0]))
      text = self.tokenizer.decode(ids)
      if not text.endswith("\ufffd"):  # a character whose bytes are not all there yet
        yield text[written:]
        written = len(text)
    if text[written:]:
      yield text[written:]

  def _prompt(self, prompt, shown, thinking) -> Example:
    if self.chat.template or self.tokenizer.has(chat_lib.ROLES["user"]):
      return self.chat.prompt([{"role": "user", "content": [*shown, {"type": "text", "text": prompt}]}], thinking)
    if shown or thinking:
      raise ValueError("this tokenizer lacks the chat markers for images and thinking; use a BlueLM checkpoint or a plain prompt")
    if not self.tokenizer.encode(prompt):
      raise ValueError("the prompt is empty; give some text")
    ids = np.asarray(self.tokenizer.encode(prompt, add_special_tokens=True), np.int32)
    empty = np.zeros((0, 1, 1, 3), np.uint8)
    return Example(ids, ids, np.zeros(len(ids), np.float32), np.full(len(ids), -1, np.int32), empty, np.zeros(0, np.int32))

  def _banned(self) -> tuple[int, ...]:
    return tuple(self.tokenizer.special_id(n) for n in chat_lib.IMAGE_MARKERS if self.tokenizer.has(n))
