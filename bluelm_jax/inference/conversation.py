"""A checkpoint that answers: weights, tokenizer and chat format together."""

import functools
from typing import Iterator, Sequence

from bluelm_jax.data import chat as chat_lib
from bluelm_jax.data import images
from bluelm_jax.data.batch import Example
from bluelm_jax.data.tokenizer import Tokenizer
from bluelm_jax.inference.engine import Engine
from bluelm_jax.inference.request import Options
from bluelm_jax.inference.request import plain_prompt
from bluelm_jax.inference.sampling import Think
from bluelm_jax.inference.text import Piece
from bluelm_jax.inference.text import Writer
from bluelm_jax.interop import hf_config
from bluelm_jax.interop import load
from bluelm_jax.models.config import BlueLMConfig
from bluelm_jax.models.config import VisionConfig


class Speaker:
  """Answers prompts with the checkpoint in a directory.

  Uses the tokenizer's chat template, or the project's chat format where the tokenizer has its markers; any other
  model continues the prompt as plain text.

  Attributes:
    model, params: as `load_pretrained` gives them, until `release`.
    tokenizer, chat: the checkpoint's own.
    think: the tokens around its thoughts, or None.
  """

  def __init__(self, directory, wrap_up: str = "", **engine):
    """
    Args:
      wrap_up: said before a thought is closed because its budget is spent.
      engine: arguments of the `Engine`.
    """
    directory = load.checkpoint_directory(directory)
    self.model, self.params = load.load_pretrained(directory)
    config = self.model.config
    if isinstance(config, VisionConfig):
      raise ValueError(f"{directory} is a vision tower and cannot speak; give a language model or a BlueLM")
    self.tokenizer = Tokenizer(directory / "tokenizer.json", hf_config.end_ids(directory))
    vocab_size = getattr(config, "decoder", config).vocab_size
    if self.tokenizer.vocab_size > vocab_size:
      raise ValueError(f"tokenizer {self.tokenizer.path} has {self.tokenizer.vocab_size} tokens, the model {vocab_size}; use a matching tokenizer")
    multimodal = isinstance(config, BlueLMConfig)
    self.chat = chat_lib.ChatFormat(
        self.tokenizer, config.anyres if multimodal else None, config.tokens_per_tile if multimodal else 1)
    self.think = None
    if self.tokenizer.has(chat_lib.THINK_OPEN) and self.tokenizer.has(chat_lib.THINK_CLOSE):
      marks = map(self.tokenizer.special_id, (chat_lib.THINK_OPEN, chat_lib.THINK_CLOSE))
      blank = {i for text in ("\n", "\n\n") if len(ids := self.tokenizer.encode(text)) == 1 for i in ids}
      self.think = Think(*marks, tuple(self.tokenizer.encode(wrap_up)), tuple(blank))
    elif wrap_up:
      raise ValueError("this tokenizer has no thinking tokens; leave wrap_up out")
    self._engine_options = engine

  @functools.cached_property
  def engine(self) -> Engine:
    banned = [self.tokenizer.special_id(n) for n in chat_lib.IMAGE_MARKERS if self.tokenizer.has(n)]
    return Engine(self.model, self.params, end_ids=self.tokenizer.end_ids, banned=banned, think=self.think, **self._engine_options)

  def release(self) -> None:
    """Makes the engine and forgets `params`: from here on the engine's own are the only ones."""
    self.engine
    self.params = None

  def reply(self, prompt: str, image_paths: Sequence[str], options: Options) -> Iterator[Piece]:
    """Yields pieces of thought and answer as they come."""
    return self.answer([user_turn(prompt, image_paths)], options)

  def answer(self, messages: Sequence[dict], options: Options) -> Iterator[Piece]:
    """The same, to a conversation as `prompt` takes it."""
    writer = Writer(self.tokenizer, options.stop)
    for token in self.engine.stream(self.prompt(messages, options.thinking), options):
      yield from writer.add(token)
      if writer.finish:
        return

  def answers(self, conversations: Sequence[tuple[Sequence[dict], Options]]) -> list[dict]:
    """For each conversation {"thought", "answer", "finish"}, all in one batch; n = 1.

    Raises:
      ValueError: one that cannot be answered, by its number; then none is.
    """
    requests, written = {}, [("", "", "") for _ in conversations]
    for i, (messages, options) in enumerate(conversations):
      try:
        requests[self.engine.submit(self.prompt(messages, options.thinking), options)] = i, Writer(self.tokenizer, options.stop)
      except ValueError as e:
        for request in requests:
          self.engine.cancel(request)
        raise ValueError(f"prompt {i + 1}: {e}") from e
    while self.engine.busy:
      for token in self.engine.step():
        i, writer = requests[token.request]
        for piece in writer.add(token):
          thought, answer, _ = written[i]
          written[i] = (thought + piece.text, answer, "") if piece.phase == "think" else (thought, answer + piece.text, "")
        if writer.finish:
          written[i] = *written[i][:2], writer.finish
          self.engine.cancel(token.request)  # where a stop text ended it
    return [dict(zip(("thought", "answer", "finish"), found)) for found in written]

  def prompt(self, messages: Sequence[dict], thinking: bool, special: bool = True) -> Example:
    """Messages as `ChatFormat.prompt` takes them; for a model without chat markers one text."""
    if self.chat.template or self.tokenizer.has(chat_lib.ROLES["user"]):
      return self.chat.prompt(messages, thinking, special)
    content = messages[0]["content"]
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    if len(messages) > 1 or thinking or any(part["type"] != "text" for part in parts):
      raise ValueError("this tokenizer lacks the chat markers for turns, images and thinking; use a BlueLM checkpoint or a plain prompt")
    text = "".join(part["text"] for part in parts)
    if not self.tokenizer.encode(text):
      raise ValueError("the prompt is empty; give some text")
    first, *others = [text] if special else self.chat.pieces(text)
    ids = self.tokenizer.encode(first, add_special_tokens=True)
    return plain_prompt([*ids, *(i for piece in others for i in self.tokenizer.encode(piece))])


def user_turn(text: str, image_paths: Sequence[str]) -> dict:
  """A message that shows images and then says a text."""
  shown = [{"type": "image", "image": images.read(p)} for p in image_paths]
  return {"role": "user", "content": [*shown, {"type": "text", "text": text}]}
