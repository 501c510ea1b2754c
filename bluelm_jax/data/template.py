"""A tokenizer's own Jinja chat template: rendering, and where in the result the assistant speaks.

Templates come from strangers: they run in Jinja's sandbox and get plain data. `strftime_now` is not offered, so that templates
that would write today's date write their default, and a run repeats.
"""

import json
from typing import Sequence

import jinja2
import jinja2.ext
import jinja2.sandbox

IMAGE = "\ufffc"  # OBJECT REPLACEMENT CHARACTER stands for an image while a template renders
_OPEN, _CLOSE = "\ue000", "\ue001"  # around what {% generation %} encloses


class Template:
  """A template and the special tokens it may name."""

  def __init__(self, source: str, tokens: dict[str, str]):
    """`tokens`: "bos_token", "eos_token" and the like, as tokenizer_config.json has them."""
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols])
    environment.filters["tojson"] = lambda x, indent=None: json.dumps(x, ensure_ascii=False, indent=indent)
    environment.globals["raise_exception"] = _refuse
    try:
      self._template = environment.from_string(source)
    except jinja2.TemplateError as e:
      raise ValueError(f"the tokenizer's chat template cannot be read ({_line(e)}); mend or remove it") from e
    self._tokens, self._tagged = tokens, "endgeneration" in source

  def prompt(self, messages: Sequence[dict], thinking: bool) -> str:
    """Text up to where the assistant starts to speak; `thinking` is the template's `enable_thinking`."""
    return _plain(self._render(messages, thinking, True))

  def pieces(self, messages: Sequence[dict]) -> list[tuple[str, int | None]]:
    """The conversation in order as (text, index of the message whose speech it is, or None for what is given).

    A turn's speech begins where its prompt ends and has the token that ends it, as {% generation %} tags say or, without
    them, as renderings of the first turns show. Templates that leave out earlier turns' thinking are followed in that.

    Raises:
      ValueError: the template cannot be split so, or leaves the last turn's thinking out.
    """
    spoken = [i for i, m in enumerate(messages) if m["role"] == "assistant"]
    thinking = "reasoning_content" in messages[spoken[-1]]
    full = self._render(messages, thinking)
    spans = _tagged(full) if self._tagged else [self._span(full, messages, i, thinking) for i in spoken]
    full = _plain(full)
    edges = [x for span in spans for x in span]
    if len(spans) != len(spoken) or edges != sorted(edges):
      raise ValueError("the tokenizer's chat template does not show where the assistant speaks; give it {% generation %} tags, or remove it to use ours")
    last = messages[spoken[-1]].get("reasoning_content", "").strip()
    if last not in full[slice(*spans[-1])]:
      raise ValueError("the tokenizer's chat template leaves reasoning_content out; leave it out of the data, or remove the template to use ours")
    found, at = [], 0
    for (start, stop), i in zip(spans, spoken):
      body = full[start:stop] if self._tagged else full[start:stop].rstrip()  # a line break behind the end is never generated
      found += [(full[at:start], None), (body, i)]
      at = start + len(body)
    return [*found, (full[at:], None)]

  def _span(self, full: str, messages, i: int, thinking: bool) -> tuple[int, int]:
    """(start, stop) of a turn's speech; (1, 0) where it is not to be seen."""
    own = "reasoning_content" in messages[i]
    starts = [p for t in (own, not own) if full.startswith(p := self._render(messages[:i], t, True))]
    through = self._render(messages[: i + 1], thinking)
    if not starts:
      return 1, 0
    if full.startswith(through):
      return len(starts[0]), len(through)
    # The template writes its last turn in another way: what follows the turn shows its end.
    if i + 1 < len(messages):
      before, alone = self._render(messages[:i], thinking), self._render([*messages[:i], messages[i + 1]], thinking)
      upto, following = self._render(messages[: i + 2], thinking), alone[len(before) :]
      if alone.startswith(before) and following and full.startswith(upto) and upto.endswith(following):
        return len(starts[0]), len(upto) - len(following)
    return 1, 0

  def _render(self, messages, thinking: bool, prompt: bool = False) -> str:
    if any(c in m[k] for m in messages for k in ("content", "reasoning_content") if k in m for c in (_OPEN, _CLOSE)):
      raise ValueError("a message holds a private-use character that marks speech here; leave it out")
    try:
      return self._template.render(messages=list(messages), add_generation_prompt=prompt, enable_thinking=thinking, **self._tokens)
    except Exception as e:  # a stranger's program may fail in many ways
      raise ValueError(f"the tokenizer's chat template refuses the conversation: {_line(e)}") from e


class _Generation(jinja2.ext.Extension):
  """{% generation %}...{% endgeneration %} encloses what the assistant says."""

  tags = {"generation"}

  def parse(self, parser):
    line = next(parser.stream).lineno
    body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
    return jinja2.nodes.CallBlock(self.call_method("_mark"), [], [], body).set_lineno(line)

  def _mark(self, caller) -> str:
    return _OPEN + caller() + _CLOSE


def _tagged(text: str) -> list[tuple[int, int]]:
  spans, at = [], 0
  for piece in text.split(_OPEN)[:-1]:
    at += len(piece.replace(_CLOSE, ""))
    spans.append(at)
  stops = [s + len(p.partition(_CLOSE)[0]) for s, p in zip(spans, text.split(_OPEN)[1:])]
  return list(zip(spans, stops))


def _plain(text: str) -> str:
  return text.replace(_OPEN, "").replace(_CLOSE, "")


def _refuse(message):
  raise jinja2.TemplateError(message)


def _line(e: Exception) -> str:
  return " ".join(str(e).split())[:150]
