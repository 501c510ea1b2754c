"""From logits to tokens in the graph: every row by its own rules, and its thinking kept to a budget.

Shapes: S rows, V vocabulary, W tokens of the sequence that closes a thought.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bluelm_jax.inference.request import MOST_BANNED
from bluelm_jax.inference.request import MOST_TOP_LOGPROBS
from bluelm_jax.inference.request import Options

BEFORE, THINKING, ANSWERING = 0, 1, 2  # phases of a sample
ASKS = LIKELIEST, PLAIN, ANYTHING = range(3)  # what a draw is asked for at most: no chance; the distribution as it is; all else too
_NEVER = -jnp.inf
_BOUNDLESS = 2**30
_LANE = 128
_PLAIN = Options()


class Rules(NamedTuple):
  """What a request asks of its tokens; every field [S] but `banned` [S, MOST_BANNED], which ends in negative ids."""

  seed: jax.Array  # uint32
  sample: jax.Array  # which of a request's n samples
  temperature: jax.Array
  top_k: jax.Array
  top_p: jax.Array
  min_p: jax.Array
  penalty: jax.Array
  budget: jax.Array
  room: jax.Array
  tops: jax.Array  # how many likeliest tokens to report
  banned: jax.Array

  @classmethod
  def of(cls, options: Options, sample: int) -> "Rules":
    """One row of numpy scalars."""
    i, f = np.int32, np.float32
    budget = options.thinking_token_budget if options.thinking else 0
    budget = _BOUNDLESS if budget is None else min(budget, _BOUNDLESS)
    banned = np.full(MOST_BANNED, -1, i)
    banned[: len(options.banned)] = options.banned
    return cls(
        np.uint32(options.seed), i(sample), f(options.temperature), i(min(options.top_k, _BOUNDLESS)), f(options.top_p), f(options.min_p),
        f(options.repetition_penalty), i(budget), i(options.room if options.thinking else 0), i(options.top_logprobs), banned)


class State(NamedTuple):
  """Where a sample is; int32 [S]."""

  token: jax.Array  # the next one to be read
  phase: jax.Array
  thought: jax.Array  # tokens inside the thought so far
  force: jax.Array  # place in the closing sequence, -1 outside it
  left: jax.Array  # tokens still to come at most


class Drawn(NamedTuple):
  """What came of a step; [S], `top_*` [S, MOST_TOP_LOGPROBS]."""

  token: jax.Array
  logprob: jax.Array
  behaviour: jax.Array
  thinking: jax.Array  # whether the token belongs to a thought, its opening and closing tokens included
  forced: jax.Array
  top_ids: jax.Array
  top_logprobs: jax.Array


class Think(NamedTuple):
  """A model's tokens around a thought.

  Attributes:
    open_id, close_id: of `<think>` and `</think>`.
    wrap_up: ids of what is said before a thought is closed by force, where the budget has room for it.
    blank: ids of white space, which a chat template may write behind the thought that it begins.
  """

  open_id: int
  close_id: int
  wrap_up: tuple[int, ...] = ()
  blank: tuple[int, ...] = ()


def asks_of(options: Options) -> int:
  """LIKELIEST, PLAIN or ANYTHING."""
  more = ("banned", "repetition_penalty", "top_logprobs", *(("top_k", "top_p", "min_p") if options.temperature else ()))
  if any(getattr(options, name) != getattr(_PLAIN, name) for name in more):
    return ANYTHING
  return PLAIN if options.temperature else LIKELIEST


def draw(logits_SV, rules: Rules, state: State, position_S, seen, masked_V, think: Think | None, asks: int = ANYTHING):
  """One token for each row.

  Args:
    position_S: of the token to come; with the seed it fixes the draw, whatever the other rows are.
    seen: () -> bool [S, V], tokens that the repetition penalty counts; called only where a row has a penalty.
    masked_V: bool, tokens that no row may produce.
    asks: of the rows at most (`asks_of`); the program does no more, and up to PLAIN it has no branches, at which a GPU waits for its host.

  Returns:
    (Drawn, the state after it).
  """
  S, V = logits_SV.shape
  raw_SV = logits_SV.astype(jnp.float32)
  rows = jnp.arange(S)
  if_any = lambda asked_S, run, x: jax.lax.cond(jnp.any(asked_S), run, lambda x: x, x) if asks == ANYTHING else x
  logits = if_any(rules.penalty != 1, lambda x: _penalised(x, seen(), rules.penalty), raw_SV)
  logits = jnp.where(masked_V, _NEVER, logits)
  ban = lambda x: x.at[rows[:, None], jnp.where(rules.banned < 0, V, rules.banned)].set(_NEVER, mode="drop")
  logits = if_any(rules.banned[:, 0] >= 0, ban, logits)
  forced, forced_token = jnp.zeros(S, bool), jnp.zeros(S, jnp.int32)
  if think is not None:
    may_open = (state.phase == BEFORE) & (state.left >= rules.room + 2)
    logits = logits.at[:, think.open_id].set(jnp.where(may_open, logits[:, think.open_id], _NEVER))
    logits = logits.at[:, think.close_id].set(jnp.where(state.phase == THINKING, logits[:, think.close_id], _NEVER))
    forced, forced_token, place = _forced(rules, state, think)
  greedy = rules.temperature == 0
  logits /= jnp.where(greedy, 1.0, rules.temperature)[:, None]
  filtered = ~greedy & ((rules.top_k > 0) | (rules.top_p < 1) | (rules.min_p > 0))
  logits = if_any(filtered, lambda x: _filtered(x, rules), logits)
  best = jnp.argmax(logits, axis=-1).astype(jnp.int32)
  drawn, total_log = (best, jnp.zeros(S, jnp.float32)) if asks == LIKELIEST else _by_mass(logits, _uniform(rules, position_S))
  token = jnp.where(forced, forced_token, jnp.where(greedy, best, drawn))
  pick = lambda x: jnp.take_along_axis(x, token[:, None], axis=1)[:, 0]
  raw_logs = jax.nn.logsumexp(raw_SV, axis=-1)
  behaviour = jnp.where(forced | greedy, 0.0, pick(logits) - total_log)
  none = jnp.zeros((S, MOST_TOP_LOGPROBS), jnp.int32), jnp.zeros((S, MOST_TOP_LOGPROBS), jnp.float32)
  top_ids, top = none
  if asks == ANYTHING:
    top_ids, top = jax.lax.cond(jnp.any(rules.tops > 0), lambda x: _top(x, raw_logs), lambda x: none, raw_SV)
  after = state._replace(token=token, left=state.left - 1)
  thinking = state.phase == THINKING
  if think is not None:
    opened, closed = (state.phase == BEFORE) & (token == think.open_id), thinking & (token == think.close_id)
    phase = jnp.where(opened, THINKING, jnp.where(closed, ANSWERING, state.phase))
    after = after._replace(phase=phase, thought=state.thought + (thinking & ~closed), force=jnp.where(forced & ~closed, place + 1, -1))
    thinking |= opened
  return Drawn(token, pick(raw_SV) - raw_logs, behaviour, thinking, forced, top_ids, top), after


def _forced(rules, state, think):
  """(whether the budget decides the token, which one it is, its place in the closing sequence).

  A thought is closed by the wrap-up sentence and `</think>`, early enough that the sentence is within the budget and
  that `room` tokens stay for the answer; where they do not fit, by `</think>` alone.
  """
  W = len(think.wrap_up)
  closing = jnp.asarray((*think.wrap_up, think.close_id), jnp.int32)
  needed = jnp.where(rules.budget >= W, W, 0)
  due = (rules.budget - state.thought <= needed) | (state.left <= needed + 1 + rules.room)
  fits = (needed == W) & (rules.budget - state.thought >= W) & (state.left >= W + 1 + rules.room)
  place = jnp.where(state.force >= 0, state.force, jnp.where(fits, 0, W))
  forced = (state.phase == THINKING) & (due | (state.force >= 0))
  return forced, closing[place], place


def _penalised(logits_SV, seen_SV, penalty_S):
  penalty = penalty_S[:, None]
  return jnp.where(seen_SV, jnp.where(logits_SV > 0, logits_SV / penalty, logits_SV * penalty), logits_SV)


def _filtered(logits_SV, rules):
  """Keeps top_k, then top_p of what is left, then min_p, each row by its own."""
  V = logits_SV.shape[1]
  top_k = jnp.where((rules.top_k > 0) & (rules.temperature > 0), rules.top_k, V)
  keys = _ordered(logits_SV)
  count = lambda at_least: jnp.sum(keys >= at_least[:, None], axis=1)
  kept = keys >= _highest(lambda t: count(t) >= jnp.minimum(top_k, jnp.sum(logits_SV > _NEVER, axis=1)))[:, None]
  logits_SV = jnp.where(kept, logits_SV, _NEVER)
  mass = jax.nn.softmax(logits_SV, axis=-1)
  top_p = jnp.where(rules.temperature > 0, rules.top_p, 1.0)
  above = lambda at_least: jnp.sum(jnp.where(keys >= at_least[:, None], mass, 0.0), axis=1)
  kept = (keys >= _highest(lambda t: above(t) >= top_p)[:, None]) | (top_p >= 1)[:, None]
  logits_SV = jnp.where(kept, logits_SV, _NEVER)
  least = jnp.max(logits_SV, axis=-1) + jnp.log(rules.min_p)
  return jnp.where(logits_SV >= least[:, None], logits_SV, _NEVER)


def _ordered(x):
  """Integers in the order of the floats."""
  bits = jax.lax.bitcast_convert_type(x, jnp.int32)
  return jnp.where(bits < 0, bits ^ jnp.int32(0x7FFFFFFF), bits)


def _highest(holds):
  """int32 [S]: the greatest t with holds(t), which turns false once as t grows; 32 halvings instead of a sort."""
  def halve(i, t):
    higher = t + (jnp.uint32(1) << (31 - i).astype(jnp.uint32))
    return jnp.where(holds(_signed(higher)), higher, t)

  start = jnp.zeros_like(holds(jnp.int32(0)[None]), jnp.uint32)
  return _signed(jax.lax.fori_loop(0, 32, halve, start))


def _signed(x):
  """uint32 to int32, in order: 0 becomes the least."""
  return jax.lax.bitcast_convert_type(x ^ jnp.uint32(0x80000000), jnp.int32)


def _uniform(rules, position_S):
  def one(seed, sample, position):
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), sample), position)
    return jax.random.uniform(key)

  return jax.vmap(one)(rules.seed, rules.sample, position_S)


def _by_mass(logits_SV, u_S):
  """(the token at which the summed probabilities pass u, log of the sum of exponentials): a number a row is drawn, not one a token."""
  S, V = logits_SV.shape
  top = jnp.max(logits_SV, axis=-1, keepdims=True)
  mass = jnp.pad(jnp.exp(logits_SV - top), ((0, 0), (0, -V % _LANE))).reshape(S, -1, _LANE)
  blocks = jnp.cumsum(mass.sum(-1), axis=1)
  total = blocks[:, -1]
  goal = u_S * total
  block = jnp.minimum(jnp.sum(blocks <= goal[:, None], axis=1), blocks.shape[1] - 1)
  before = jnp.where(block > 0, jnp.take_along_axis(blocks, jnp.maximum(block - 1, 0)[:, None], axis=1)[:, 0], 0.0)
  inside = jnp.take_along_axis(mass, block[:, None, None], axis=1)[:, 0]
  passed = jnp.cumsum(inside, axis=1) > (goal - before)[:, None]
  last = _LANE - 1 - jnp.argmax((inside > 0)[:, ::-1], axis=1)  # where rounding lets none pass
  first = jnp.argmax(passed & (inside > 0), axis=1)
  lane = jnp.where(jnp.any(passed & (inside > 0), axis=1), first, last)
  return (block * _LANE + lane).astype(jnp.int32), jnp.log(total) + top[:, 0]


def _top(logits_SV, log_total_S):
  values, ids = jax.lax.top_k(logits_SV, min(MOST_TOP_LOGPROBS, logits_SV.shape[1]))
  pad = ((0, 0), (0, MOST_TOP_LOGPROBS - values.shape[1]))
  return jnp.pad(ids, pad), jnp.pad(values - log_total_S[:, None], pad, constant_values=_NEVER)
