"""Draws against transformers' own rules, and thoughts that keep to their budgets."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from bluelm_jax.inference import sampling
from bluelm_jax.inference.request import Options

VOCAB = 50
OPEN, CLOSE, WRAP_UP = 48, 49, (3, 4, 5)


def rules(options, samples=None):
  rows = [sampling.Rules.of(o, 0 if samples is None else samples[i]) for i, o in enumerate(options)]
  return jax.tree.map(lambda *x: np.stack(x), *rows)


def start(options, phase=sampling.ANSWERING):
  full = lambda x: np.full(len(options), x, np.int32)
  return sampling.State(full(0), full(phase), full(0), full(-1), np.array([o.max_tokens for o in options], np.int32))


@functools.partial(jax.jit, static_argnames="think")
def draw(logits, rules, state, position, seen, masked, think=None):
  return sampling.draw(logits, rules, state, position, lambda: seen, masked, think)


def processed(options, logits, seen):
  """The log-probabilities that transformers draws from."""
  scores, history = torch.tensor(logits)[None], torch.tensor(np.flatnonzero(seen))[None]
  steps = []
  if options.repetition_penalty != 1:
    steps.append(transformers.RepetitionPenaltyLogitsProcessor(options.repetition_penalty))
  steps.append(transformers.TemperatureLogitsWarper(options.temperature))
  if options.top_k:
    steps.append(transformers.TopKLogitsWarper(options.top_k))
  if options.top_p < 1:
    steps.append(transformers.TopPLogitsWarper(options.top_p))
  if options.min_p:
    steps.append(transformers.MinPLogitsWarper(options.min_p))
  for step in steps:
    scores = step(history, scores)
  return torch.log_softmax(scores, -1)[0].numpy()


def test_rows_follow_their_own_rules_as_in_transformers():
  """One batch of 400 rows with rules at random, drawn 64 times: every draw is allowed, and as likely as reported."""
  rng = np.random.default_rng(0)
  options = [
      Options(
          temperature=float(rng.choice([0.3, 1.0, 2.0])), top_k=int(rng.choice([0, 1, 5, 60])), top_p=float(rng.choice([0.2, 0.9, 1.0])),
          min_p=float(rng.choice([0.0, 0.1])), repetition_penalty=float(rng.choice([1.0, 1.3, 0.7])), seed=i) for i in range(400)]
  logits = rng.normal(0, 2, (400, VOCAB)).astype(np.float32)
  seen = rng.random((400, VOCAB)) < 0.2
  expected = np.stack([processed(*row) for row in zip(options, logits, seen)])
  counts = np.zeros((400, VOCAB))
  for position in range(64):
    drawn, _ = draw(logits, rules(options), start(options), np.full(400, position), seen, np.zeros(VOCAB, bool))
    picked = np.arange(400), np.asarray(drawn.token)
    np.testing.assert_allclose(drawn.behaviour, expected[picked], atol=2e-5)
    np.testing.assert_allclose(drawn.logprob, np.asarray(jax.nn.log_softmax(logits))[picked], atol=2e-5)
    counts[picked] += 1
  # 400 x 64 draws against what was to be expected, over all rows by rank of likelihood.
  order = np.argsort(-expected, axis=1)
  found, wanted = (np.take_along_axis(x, order, axis=1).sum(0)[:6] for x in (counts, 64 * np.exp(expected)))
  np.testing.assert_allclose(found, wanted, rtol=0.06, atol=60)


def test_draws_follow_the_probabilities():
  """A chi-square over 20,000 draws from a vocabulary that is no multiple of a block."""
  logits = np.random.default_rng(1).normal(0, 1.5, 300).astype(np.float32)
  many = [Options(temperature=1.0, seed=s) for s in range(2000)]
  counts = np.zeros(300)
  for position in range(10):
    drawn, _ = draw(np.tile(logits, (2000, 1)), rules(many), start(many), np.full(2000, position), np.zeros((2000, 300), bool), np.zeros(300, bool))
    counts += np.bincount(drawn.token, minlength=300)
  wanted = 20_000 * np.asarray(jax.nn.softmax(logits))
  assert ((counts - wanted) ** 2 / wanted).sum() < 299 + 4 * np.sqrt(2 * 299)


def test_masked_tokens_and_temperature_zero():
  logits = np.array([[0.0, 3.0, 2.0, 1.0]] * 2, np.float32)
  options = [Options(), Options(banned=(2,))]
  drawn, after = draw(logits, rules(options), start(options), np.zeros(2, int), np.zeros((2, 4), bool), np.array([False, True, False, False]))
  assert drawn.token.tolist() == [2, 3] and drawn.behaviour.tolist() == [0, 0] and after.left.tolist() == [255, 255]


@pytest.mark.parametrize("least, options", [
    (sampling.LIKELIEST, [Options(top_p=0.5 + 0.05 * i) for i in range(8)]),
    (sampling.PLAIN, [Options(temperature=float(i % 3), seed=i) for i in range(8)])])
def test_a_draw_that_does_less_says_the_same(least, options):
  logits, state = np.random.default_rng(0).normal(0, 2, (8, VOCAB)).astype(np.float32), start(options)
  assert max(map(sampling.asks_of, options)) == least
  found = []
  for asks in sampling.ASKS[least:]:
    run = jax.jit(lambda logits, table, state, asks=asks: sampling.draw(
        logits, table, state, np.arange(8), lambda: np.zeros((8, VOCAB), bool), np.arange(VOCAB) == 7, None, asks))
    found.append(jax.device_get(run(logits, rules(options), state)))
  for other in found[1:]:
    jax.tree.map(np.testing.assert_array_equal, found[0], other)


def test_every_option_has_its_kind_of_draw():
  more = {"banned": (3,), "repetition_penalty": 1.1, "top_logprobs": 1, "top_k": 2, "top_p": 0.5, "min_p": 0.1}
  no_matter = {
      "max_tokens", "temperature", "seed", "n", "stop", "stop_ids", "thinking", "thinking_token_budget", "answer_tokens"}  # the state's, or the host's
  assert {f.name for f in dataclasses.fields(Options)} == {*more, *no_matter}
  for name, value in more.items():
    assert sampling.asks_of(Options(temperature=1.0, **{name: value})) == sampling.ANYTHING


@pytest.mark.parametrize("wrap_up", [(), WRAP_UP])
def test_budgets_are_kept(wrap_up):
  """5,000 answers at random: modes, budgets, lengths, room, and models that close early, never, or want to close twice."""
  think, rng, rows = sampling.Think(OPEN, CLOSE, wrap_up), np.random.default_rng(0), 2500
  longest = 48
  for round_ in range(2):
    options, eager = [], []
    for i in range(rows):
      thinking = bool(rng.random() < 0.8)
      most = int(rng.integers(8, longest + 1))
      budget = int(rng.choice([0, 1, 2, 3, 4, 7, 20, 1000])) if thinking and rng.random() < 0.8 else None
      room = int(rng.integers(1, most - 2)) if thinking and rng.random() < 0.5 else None
      options.append(Options(
          max_tokens=most, temperature=float(rng.choice([0.0, 1.0])), seed=round_ * rows + i, thinking=thinking, thinking_token_budget=budget, answer_tokens=room))
    opens, closes = rng.choice([-9.0, 0.0, 9.0], rows), rng.choice([-9.0, 0.0, 4.0, 9.0], rows)
    begun = rng.random(rows) < 0.3  # by the chat template
    phase = np.where(begun, sampling.THINKING, np.where([o.thinking for o in options], sampling.BEFORE, sampling.ANSWERING)).astype(np.int32)
    state, table = start(options)._replace(phase=phase), rules(options)
    tokens, forced, inside = (np.zeros((rows, longest), int) for _ in range(3))
    for at in range(longest):
      logits = rng.normal(0, 1, (rows, VOCAB)).astype(np.float32)
      logits[:, OPEN], logits[:, CLOSE] = opens, closes
      drawn, state = draw(logits, table, state, np.full(rows, at), np.zeros((rows, VOCAB), bool), np.zeros(VOCAB, bool), think)
      tokens[:, at], forced[:, at], inside[:, at] = drawn.token, drawn.forced, drawn.thinking
    for i, o in enumerate(options):
      _check_answer(o, tokens[i, : o.max_tokens].tolist(), forced[i], inside[i], bool(begun[i]), wrap_up)


def _check_answer(o, said, forced, inside, begun, wrap_up):
  opened = begun or OPEN in said
  assert said.count(OPEN) == (opened and not begun) and said.count(CLOSE) == opened, "a thought is opened and closed once"
  if not opened:
    assert not inside.any() and not forced.any()
    return
  assert o.thinking or begun
  first, last = 0 if begun else said.index(OPEN) + 1, said.index(CLOSE)
  budget = (1 << 30 if o.thinking_token_budget is None else o.thinking_token_budget) if o.thinking else 0
  assert last - first <= budget, "the budget is exceeded"
  assert len(said) - last - 1 >= (o.room if o.thinking else 1), "no room is left to the answer"
  assert inside[: len(said)].tolist() == [int((begun or said.index(OPEN) <= i) and i <= last) for i in range(len(said))]
  closing = [i for i in range(len(said)) if forced[i]]
  if closing:
    assert [said[i] for i in closing] in ([CLOSE], [*wrap_up, CLOSE]) and closing == list(range(closing[0], last + 1))
    if budget >= len(wrap_up) and len(said) - first >= len(wrap_up) + 1 + (o.room if o.thinking else 0):
      assert len(closing) == len(wrap_up) + 1, "there was room for the sentence"
