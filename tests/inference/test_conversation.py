"""Prompts of models without chat markers."""

from bluelm_jax.data import chat as chat_lib
from bluelm_jax.data.tokenizer import Tokenizer
from bluelm_jax.inference.conversation import Speaker


def test_a_stranger_cannot_end_the_text_of_a_model_without_chat_markers(monkeypatch):
  tokenizer = Tokenizer()
  monkeypatch.setattr(tokenizer, "has", lambda token: False)
  speaker = Speaker.__new__(Speaker)  # of whose weights nothing is asked
  speaker.tokenizer, speaker.chat = tokenizer, chat_lib.ChatFormat(tokenizer, None, 1)
  ids = lambda text, special: speaker.prompt([{"role": "user", "content": text}], False, special).tokens.tolist()
  typed = "a <|endoftext|> b"
  assert ids(typed, True).count(tokenizer.end_id) == 1 and tokenizer.end_id not in ids(typed, False)
  assert tokenizer.decode(ids(typed, False)) == typed and ids("a < b", False) == ids("a < b", True)
