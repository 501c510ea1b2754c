"""The engine's compiled steps: one a shape, over the trainer's own modules.

Shapes: S decoding rows of Q tokens, C prefilling rows of ROW tokens, M pages of a row's table, T = S Q + C ROW tokens,
N steps of one call, V vocabulary, D width.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bluelm_jax.inference import sampling
from bluelm_jax.inference import weights
from bluelm_jax.inference.request import Options
from bluelm_jax.models.decoder import PagedCache
from bluelm_jax.models.decoder import logits
from bluelm_jax.sharding import rules

ROW = 16  # tokens of a prefilling row


class Shape(NamedTuple):
  """What a program is compiled for."""

  decodes: int  # S
  drafts: int  # Q - 1
  prefills: int  # C
  pages: int  # M
  steps: int = 1  # tokens drawn by one call; more than 1 only without drafts and prefills


class Batch(NamedTuple):
  """One step's work, int32, on the host.

  Attributes:
    slots_S: whose state each decoding row reads and writes; the last slot belongs to rows that are not there.
    positions_S: of the token a decoding row reads, -1 for rows that are not there.
    drafts_SQ: [S, Q - 1], guesses at the tokens after it; -1 from the first on that is none.
    tables_SM: pages of each decoding row.
    tokens_CB, positions_CB, vision_CB, tables_CM: of prefilling rows; vision is a visual token's number, -1 for text.
  """

  slots_S: np.ndarray
  positions_S: np.ndarray
  drafts_SQ: np.ndarray
  tables_SM: np.ndarray
  tokens_CB: np.ndarray
  positions_CB: np.ndarray
  vision_CB: np.ndarray
  tables_CM: np.ndarray

  @classmethod
  def empty(cls, shape: Shape, slots: int) -> "Batch":
    return cls(*(np.full(dims, fill, np.int32) for dims, fill in zip(cls._dims(shape), (slots, -1, -1, 0, 0, -1, -1, 0), strict=True)))

  @classmethod
  def _dims(cls, shape: Shape):
    S, C, M = shape.decodes, shape.prefills, shape.pages
    return (S,), (S,), (S, shape.drafts), (S, M), (C, ROW), (C, ROW), (C, ROW), (C, M)

  def packed(self) -> np.ndarray:
    """One row of numbers: one transfer."""
    return np.concatenate([x.reshape(-1) for x in self])

  @classmethod
  def unpacked(cls, numbers, shape: Shape) -> "Batch":
    dims = cls._dims(shape)
    ends = np.cumsum([math.prod(d) for d in dims]).tolist()
    return cls(*(numbers[start:end].reshape(d) for start, end, d in zip([0, *ends], ends, dims)))


class Slots(NamedTuple):
  """What every slot, and one more for rows that are not there, keeps on the device between steps.

  Attributes:
    rules, state: `sampling.Rules` and `State`.
    seen_SV: bool, tokens that a slot's repetition penalty counts.
  """

  rules: sampling.Rules
  state: sampling.State
  seen_SV: jax.Array


class Told(NamedTuple):
  """What a step's rows drew, for the host.

  Attributes:
    numbers: int32 [6, S, Q], one transfer: token, log-probability, that under the distribution drawn from, whether of a thought,
      whether forced, how many of the row's tokens count (1 and the guesses that came true). With several steps Q is their number.
    top_ids, top_logprobs: [S, Q, MOST_TOP_LOGPROBS].
  """

  numbers: jax.Array
  top_ids: jax.Array
  top_logprobs: jax.Array

  @classmethod
  def of(cls, drawn: sampling.Drawn, counts_S):
    bits = lambda x: jax.lax.bitcast_convert_type(x, jnp.int32) if x.dtype == jnp.float32 else x.astype(jnp.int32)
    assert drawn.logprob.dtype == drawn.behaviour.dtype == jnp.float32
    counts_SQ = jnp.broadcast_to(counts_S[:, None], drawn.token.shape)
    return cls(jnp.stack([bits(x) for x in (*drawn[:5], counts_SQ)]), drawn.top_ids, drawn.top_logprobs)

  def rows(self) -> list[list]:
    """Waits; the six of `numbers`, as lists [S][Q]."""
    numbers = np.asarray(self.numbers)
    return [(x.view(np.float32) if i in (1, 2) else x).tolist() for i, x in enumerate(numbers)]


class Programs:
  """Compiled programs by shape.

  A step is a forward pass, and a draw from its logits that does not depend on all of the shape. Several steps are one program.
  """

  def __init__(self, model, masked_V: np.ndarray, think: sampling.Think | None, mesh=None):
    self.model, self.think, self.masked_V, self.mesh = model, think, masked_V, mesh
    self.compiled: dict[tuple, jax.stages.Compiled] = {}
    self._forward = jax.jit(self._forward_fn, static_argnames="shape", donate_argnames="pages")
    self._draws = [jax.jit(functools.partial(self._draw_fn, asks), donate_argnames="slots") for asks in sampling.ASKS]
    self._several = [jax.jit(functools.partial(self._several_fn, asks), static_argnames="shape", donate_argnames=("pages", "slots")) for asks in sampling.ASKS]
    self.admit = jax.jit(_admit, donate_argnames="slots")
    self.count_seen = jax.jit(lambda slots, slot, seen_V: slots._replace(seen_SV=slots.seen_SV.at[slot].set(seen_V)), donate_argnames="slots")
    self.copy_pages = jax.jit(functools.partial(_copy_pages, getattr(model.config, "decoder", model.config).num_layers), donate_argnames="pages")

  def step(self, shape: Shape, asks: int, params, pages, slots: Slots, visual_XD, batch: Batch):
    """(pages, slots, `Told`).

    Args:
      asks: of the rows at most; see `sampling.asks_of`.
    """
    numbers = batch.packed()
    if shape.steps > 1:
      return self._run(self._several[asks], shape, params, pages, slots, numbers, shape=shape)
    pages, *rows = self._run(self._forward, shape, params, pages, slots.state.token, visual_XD, numbers, shape=shape)
    return pages, *self._run(self._draws[asks], shape[:2], slots, *rows)

  def _run(self, program, key, *args, **static):
    if (program, key) not in self.compiled:
      with rules.within(self.mesh):
        self.compiled[program, key] = program.lower(*args, **static).compile()
    return self.compiled[program, key](*args)

  def _forward_fn(self, params, pages, token_of_slot, visual_XD, numbers, *, shape):
    batch = Batch.unpacked(numbers, shape)
    return *self._read(params, pages, token_of_slot, visual_XD, batch), *(rules.constrain(x, *[None] * x.ndim) for x in batch[:3])

  def _several_fn(self, asks, params, pages, slots, numbers, *, shape):
    """A loop over the steps, so that the host is asked once for all of them. A row stops when no token is left to it."""
    batch = Batch.unpacked(numbers, shape)

    def step(carry, i):
      pages, slots = carry
      here_S = (batch.positions_S >= 0) & (slots.state.left[batch.slots_S] > 0)
      now = batch._replace(positions_S=jnp.where(here_S, batch.positions_S + i, -1))
      pages, logits_SQV = self._read(params, pages, slots.state.token, None, now)
      slots, drawn, _ = self._draw(asks, slots, logits_SQV, *now[:3])
      return (pages, slots), (jax.tree.map(lambda x: x[:, 0], drawn), here_S)

    (pages, slots), (drawn, here_NS) = jax.lax.scan(step, (pages, slots), jnp.arange(shape.steps, dtype=jnp.int32))
    return pages, slots, Told.of(jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1), drawn), here_NS.sum(0, dtype=jnp.int32))

  def _read(self, params, pages, token_of_slot, visual_XD, batch):
    """(pages, logits [S, Q, V])."""
    S, Q = len(batch.slots_S), batch.drafts_SQ.shape[1] + 1
    inputs_SQ = jnp.concatenate([token_of_slot[batch.slots_S][:, None], jnp.maximum(batch.drafts_SQ, 0)], axis=1)
    positions_SQ = _positions(batch.positions_S, batch.drafts_SQ)
    flat = lambda a, b: jnp.concatenate([a.reshape(-1), b.reshape(-1)])
    size = pages[0].shape[2]
    slots_T = flat(_places(positions_SQ, batch.tables_SM, size), _places(batch.positions_CB, batch.tables_CM, size))
    rows = [(t, p) for t, p in ((batch.tables_SM, positions_SQ), (batch.tables_CM, batch.positions_CB)) if p.size]
    cache = PagedCache(pages, slots_T, tuple(rows))
    images = {}
    if visual_XD is not None and batch.vision_CB.size:
      images = {"visual": visual_XD[None], "vision_index": flat(jnp.full((S, Q), -1, jnp.int32), batch.vision_CB)[None]}
    x_1TD, table_DV, cache = self.model.apply(
        {"params": weights.whole(params)}, flat(inputs_SQ, batch.tokens_CB)[None],
        positions=jnp.maximum(flat(positions_SQ, batch.positions_CB), 0)[None], cache=cache, method="readout", **images)
    pages = tuple(rules.constrain(x, None, "kv_heads", *[None] * (x.ndim - 2)) for x in cache.pages)
    return pages, logits(x_1TD[:, : S * Q], table_DV).reshape(S, Q, -1)

  def _draw_fn(self, asks, slots, logits_SQV, slots_S, positions_S, drafts_SQ):
    slots, drawn, counts_S = self._draw(asks, slots, logits_SQV, slots_S, positions_S, drafts_SQ)
    return slots, Told.of(drawn, counts_S)

  def _draw(self, asks, slots, logits_SQV, slots_S, positions_S, drafts_SQ):
    """(slots, `sampling.Drawn` with fields [S, Q, ...], how many of a row's tokens count)."""
    state, asked = (jax.tree.map(lambda x: x[slots_S], t) for t in (slots.state, slots.rules))
    positions_SQ = _positions(positions_S, drafts_SQ)
    found, counts, alive, seen_SV = [], jnp.zeros(len(slots_S), jnp.int32), positions_S >= 0, slots.seen_SV
    for i in range(logits_SQV.shape[1]):
      drawn, after = sampling.draw(
          logits_SQV[:, i], asked, state, positions_SQ[:, i] + 1, lambda: seen_SV[slots_S], self.masked_V, self.think, asks)
      found.append(drawn)
      state = jax.tree.map(lambda new, old: jnp.where(alive, new, old), after, state)
      counts += alive
      seen_SV = seen_SV.at[jnp.where(alive, slots_S, len(seen_SV)), drawn.token].set(True, mode="drop")
      if i < drafts_SQ.shape[1]:
        alive &= drawn.token == drafts_SQ[:, i]
    slots = Slots(slots.rules, jax.tree.map(lambda all_, new: all_.at[slots_S].set(new), slots.state, state), seen_SV)
    slots = jax.tree.map(lambda x: rules.constrain(x, *[None] * x.ndim), slots)
    return slots, jax.tree.map(lambda *x: jnp.stack(x, axis=1), *found), counts


def new_slots(vocab_size: int, count: int) -> Slots:
  """`count` slots and the one beside them: greedy, and nothing is asked of them."""
  rules = jax.tree.map(lambda x: jnp.repeat(x[None], count + 1, axis=0), sampling.Rules.of(Options(), 0))
  state = sampling.State(*(jnp.zeros(count + 1, jnp.int32) for _ in sampling.State._fields))
  return Slots(rules, state, jnp.zeros((count + 1, vocab_size), bool))


def _positions(positions_S, drafts_SQ):
  """[S, Q] of the token a row reads and of its guesses; -1 for those that are not there."""
  here = (positions_S >= 0)[:, None]
  here = here & jnp.concatenate([here, drafts_SQ >= 0], axis=1)
  return jnp.where(here, positions_S[:, None] + jnp.arange(here.shape[1]), -1)


def _places(positions_RQ, tables_RM, page_size):
  """The slot of each token; page 0 takes the tokens that are not there."""
  place = jnp.maximum(positions_RQ, 0)
  pages = jnp.take_along_axis(tables_RM, jnp.minimum(place // page_size, tables_RM.shape[1] - 1), axis=1)
  return jnp.where(positions_RQ >= 0, pages * page_size + place % page_size, 0)


def _admit(slots, slots_A, rules_A, state_A):
  """Puts new samples into slots; more rows than samples repeat the slot beyond the last."""
  put = lambda all_, new: all_.at[slots_A].set(new)
  return slots._replace(rules=jax.tree.map(put, slots.rules, rules_A), state=jax.tree.map(put, slots.state, state_A))


def _copy_pages(layers, pages, from_A, to_A):
  """Copies pages in every layer."""
  first = jnp.arange(layers)[:, None] * (pages[0].shape[0] // layers)
  return jax.tree.map(lambda x: x.at[first + to_A].set(x[first + from_A]), pages)
