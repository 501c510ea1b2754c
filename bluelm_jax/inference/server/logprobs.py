"""Log-probabilities as OpenAI's API gives them."""

_LOWEST = -9999.0  # JSON has no infinity


def finite(logprob: float) -> float:
  return max(logprob, _LOWEST)


def entry(tokenizer, token) -> dict:
  """A token's element of `logprobs.content`."""
  return {**_one(tokenizer, token.token, token.logprob), "top_logprobs": [_one(tokenizer, *pair) for pair in token.top]}


def _one(tokenizer, token_id: int, logprob: float) -> dict:
  text = tokenizer.decode([token_id])
  # A token within a character has bytes that the tokenizer does not tell.
  return {"token": text, "logprob": finite(logprob), "bytes": None if "\ufffd" in text else list(text.encode())}
