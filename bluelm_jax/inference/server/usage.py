"""What an answer cost."""


class Usage:
  """Counts tokens of all samples of a request; those that shape no text (end tokens, marks of a thought) count too."""

  def __init__(self, prompt_tokens: int):
    self.prompt_tokens, self.completion_tokens, self.reasoning_tokens = prompt_tokens, 0, 0

  def add(self, token) -> None:
    self.completion_tokens += 1
    self.reasoning_tokens += token.phase == "think"

  def object(self) -> dict:
    return {
        "prompt_tokens": self.prompt_tokens, "completion_tokens": self.completion_tokens,
        "total_tokens": self.prompt_tokens + self.completion_tokens, "reasoning_tokens": self.reasoning_tokens,
        "completion_tokens_details": {"reasoning_tokens": self.reasoning_tokens}}
