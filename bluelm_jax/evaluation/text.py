"""Held-out text: bits per byte, reasoning with and without thought, and notes in long texts."""

import jax
import jax.numpy as jnp
import numpy as np

from bluelm_jax.data import pack
from bluelm_jax.data import sources
from bluelm_jax.data.tasks import lookup
from bluelm_jax.data.tasks import reasoning
from bluelm_jax.evaluation.grounding import replies
from bluelm_jax.evaluation.grounding import VAIN_DRAWS
from bluelm_jax.inference.request import Options
from bluelm_jax.training import losses


def bits_per_byte(model, params, chat, path: str, length: int = 256, rows: int = 8) -> dict[str, np.ndarray]:
  """language -> array [documents, 2] of (bits, bytes); each document is read in windows of `length` tokens.

  The first token of a window is given, so its bytes are not counted.
  """
  shard = sources.read_shard(path)
  sums = jax.jit(lambda p, b: jnp.sum(losses.token_losses(model, p, b), axis=1))
  spec = pack.PackSpec(rows, length, tile_size=chat.anyres.tile_size if chat.anyres else 1)
  windows, totals = [], {}
  for i in range(len(shard)):
    sample = shard[i]
    ids = np.array(chat.tokenizer.encode(sample.text), np.int32)
    first_bytes = 0
    for start in range(0, len(ids) - 1, length):
      windows.append((i, sources.text_example(ids[start : start + length + 1], chat)))
      if start == 0:
        first_bytes = len(chat.tokenizer.decode(ids[:1]).encode())
    totals[i] = [sample.meta["language"], 0.0, len(sample.text.encode()) - first_bytes]
  for at in range(0, len(windows), rows):  # one window a row, so that rows tell documents apart
    group = windows[at : at + rows]
    nats = np.asarray(sums(params, pack.lay_out([[example] for _, example in group], pack.empty(spec), 1)))
    for row, (i, _) in enumerate(group):
      totals[i][1] += float(nats[row]) / np.log(2)
  return {lang: np.array([t[1:] for t in totals.values() if t[0] == lang]) for lang in ("zh", "en")}


def problems(count: int, seed: int) -> list[reasoning.Problem]:
  """Distinct held-out problems, tasks in turn."""
  rng, found, vain = np.random.default_rng(seed), {}, 0
  tasks = list(reasoning.LENGTHS)
  while len(found) < count and vain < VAIN_DRAWS:
    problem = reasoning.make(rng, tasks[len(found) % len(tasks)], held_out=True)
    vain = vain + 1 if problem.question in found else 0
    found.setdefault(problem.question, problem)
  if len(found) < count:
    raise ValueError(f"there are not {count} held-out problems; lower evaluation.reasoning_items")
  return list(found.values())


def reason(engine, chat, tokenizer, asked: list[reasoning.Problem], style: str) -> list[str]:
  """Replies; `style` is "long", "short" or "none" (the switch is off)."""
  thinking = style != "none"
  prompts = [chat.prompt(reasoning.conversation(p, style)[:1], thinking) for p in asked]
  return replies(engine, tokenizer, prompts, Options(max_tokens=88 if thinking else 8, thinking=thinking, answer_tokens=8 if thinking else None))


def look_up(model, params, chat, path: str, length: int, documents: int, notes: int, seed: int) -> np.ndarray:
  """Whether each note of each text is found: all tokens of its answer come first, those before given; float [documents, notes].

  The model is run at positions it may not have been made for: its context is not looked at.

  Args:
    length: tokens of text.
  """
  records, rng = sources.Records(path), np.random.default_rng(seed)
  predict = jax.jit(lambda p, b: jnp.argmax(losses.apply_batch(model, p, b), -1))
  spec = pack.PackSpec(1, -(-(length + notes * lookup.MOST_TOKENS) // 128) * 128, tile_size=chat.anyres.tile_size if chat.anyres else 1)
  found = np.zeros((documents, notes))
  for i in range(documents):
    sample = records[int(rng.integers(len(records)))]
    text = sources.joined_text(records, sample, chat.tokenizer, length, rng)
    example = chat.example(lookup.conversation(text, notes, sample.meta.get("language"), rng))
    said = np.asarray(predict(params, pack.lay_out([[example]], pack.empty(spec), 1)))[0, : len(example.tokens)]
    spoken = example.loss_weights > 0
    answer = np.cumsum(np.diff(spoken, prepend=False) & spoken) - 1  # which answer a token belongs to
    found[i] = [bool((said == example.targets)[spoken & (answer == k)].all()) for k in range(notes)]
  return found
