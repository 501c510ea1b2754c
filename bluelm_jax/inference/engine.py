"""The inference engine: requests join and leave a running batch, step by step, and share what they have in common."""

import itertools
from typing import Iterator, Sequence

import jax
import numpy as np

from bluelm_jax.data.batch import Example
from bluelm_jax.inference import images
from bluelm_jax.inference import programs
from bluelm_jax.inference import sampling
from bluelm_jax.inference import weights
from bluelm_jax.inference.pages import PagePool
from bluelm_jax.inference.request import Options
from bluelm_jax.inference.request import Request
from bluelm_jax.inference.request import Token
from bluelm_jax.inference.schedule import Plan
from bluelm_jax.inference.schedule import Sample
from bluelm_jax.inference.schedule import Scheduler
from bluelm_jax.kernels.attention.api import target_platform
from bluelm_jax.models.config import BlueLMConfig
from bluelm_jax.models.decoder import empty_pages
from bluelm_jax.sharding import rules

_ADMITTED = 8  # samples put into slots by one call
_STEPS = {"gpu": 4}  # of one call


class Engine:
  """Answers requests with one model.

  Continuous batching over paged keys and values (arXiv 2309.06180): every step reads pieces of new prompts and draws a token, or
  where nobody reads several, for each running sample. While the device computes a step, the host prepares the next, so a token is
  reported one call of `step` after its own. Not for use by several threads at once.

  Attributes:
    max_context: the longest prompt and answer together, in tokens.
    version: of the weights.
  """

  def __init__(
      self, model, params, *, end_ids: Sequence[int], banned: Sequence[int] = (), think: sampling.Think | None = None, slots: int = 32,
      pages: int | None = None, page_size: int | None = None, prefill_tokens: int = 256, tiles: int = 64, drafts: int = 0, steps: int | None = None,
      kv_dtype: str | None = None, bits: int | None = None, group: int | None = None, mesh: jax.sharding.Mesh | None = None, version: int = 0,
  ):
    """
    Args:
      params: the trainer's tree. What has the engine's dtype and place already is kept as it is, not copied: do not donate it.
        Layers are copied but on TPUs: they are taken apart.
      end_ids: tokens that end an answer.
      banned: tokens never produced.
      think: the model's thinking tokens; None for one that cannot think.
      slots: samples that draw at once.
      pages: of `page_size` tokens each; None: enough for a quarter of the slots at full context.
      page_size: None means 128 on TPUs, as their kernel wants it, and 16 elsewhere.
      prefill_tokens: tokens of prompts read in one step at most; at least 32.
      tiles: visual tokens are kept for so many.
      kv_dtype: of keys and values, "int8" or None for the compute dtype.
      bits, group: of the decoder's weights, 8 or 4, and how many of their inputs share a scale; see `models.quantized`.
      mesh: tensor ranks share heads, neurons and vocabulary; None: one device.
      drafts: tokens guessed ahead from the text so far, and checked in the same step; 0 guesses none.
      steps: tokens that each sample draws in one call of the device, while no prompt is read and all samples are greedy or at a
        temperature alone (`sampling.PLAIN`); None means 4 on GPUs, so that they do not wait for the host, and 1 elsewhere or with drafts.
        What is drawn beyond an end is thrown away, and a slot is free after the call: short answers want fewer.
    """
    self._weights, self.version, self.drafts = weights.Weights(model, mesh, bits, group), version, drafts
    self.model, self._mesh = self._weights.model, mesh
    self._end_ids, self._think = tuple(end_ids), think
    config = self.model.config
    multimodal = isinstance(config, BlueLMConfig)
    self._decoder = config.decoder if multimodal else config
    if kv_dtype not in (None, "int8"):
      raise ValueError(f"kv_dtype {kv_dtype!r} is unknown; use 'int8' or None")
    if min(slots, pages or 1, page_size or 1) < 1 or drafts < 0:
      raise ValueError(f"slots {slots}, pages {pages} and page_size {page_size} must be at least 1, drafts {drafts} at least 0")
    if steps is None:
      steps = _STEPS.get(target_platform(), 1) if not drafts else 1
    if steps < 1 or (drafts and steps > 1):
      raise ValueError(f"steps {steps} must be at least 1, and with drafts no more; leave one of them out")
    if prefill_tokens < 2 * programs.ROW:
      raise ValueError(f"prefill_tokens {prefill_tokens} is below {2 * programs.ROW}; use more")
    page_size = page_size or (128 if target_platform() == "tpu" else 16)
    pages = pages or -(-self._decoder.context // page_size) * max(1, slots // 4)
    self.max_context = min(self._decoder.context, pages * page_size)
    self._pool = PagePool(pages, page_size)
    self._images = images.ImagePool(self.model, tiles, mesh) if multimodal else None
    self.params = self._weights.kept(params)
    self._scheduler = Scheduler(
        self._pool, slots, prefill_tokens // programs.ROW, drafts, steps, -(-self.max_context // page_size),
        config.tokens_per_tile if multimodal else 1, self._images)
    masked = np.zeros(self._decoder.vocab_size, bool)
    masked[list(banned)] = True
    self._programs = programs.Programs(self.model, masked, think, mesh)
    self._pages = self._placed(empty_pages(self._decoder, pages + 1, page_size, kv_dtype), "kv_heads")
    self._slots = self._placed(programs.new_slots(self._decoder.vocab_size, slots))
    self._ids, self._in_flight, self._steps = itertools.count(), None, 0

  def _placed(self, arrays, *second_axis: str):
    """Arrays on the mesh, split along their second axis, or whole on every device."""
    if self._mesh is None:
      return arrays
    spec = rules.spec([None, *second_axis], self._mesh.axis_names)
    return jax.device_put(arrays, jax.sharding.NamedSharding(self._mesh, spec if second_axis else rules.spec([])))

  @property
  def busy(self) -> bool:
    return self._scheduler.busy

  def warm_up(self) -> None:
    """Compiles every program that a request may need, by steps in which nobody takes part."""
    visual = self._images.visual_XD if self._images else None
    warm = set()
    for shape in self._scheduler.shapes():
      batch = programs.Batch.empty(shape, self._scheduler.slots)
      new = (sampling.LIKELIEST, sampling.PLAIN) if shape.steps > 1 else sampling.ASKS if shape[:2] not in warm else (sampling.LIKELIEST,)
      for asks in new:
        self._pages, self._slots, *_ = self._programs.step(shape, asks, self.params, self._pages, self._slots, visual, batch)
      warm |= {shape[:2]} if shape.steps == 1 else set()
    if self._images:
      self._images.warm_up(self.params)

  def submit(self, prompt: Example, options: Options) -> int:
    """Queues a prompt (`ChatFormat.prompt`); its tokens come from `step` under the number returned.

    Raises:
      ValueError: what this engine can never answer.
    """
    length = len(prompt.tokens)
    if not length:
      raise ValueError("the prompt is empty; give some text")
    if length + options.max_tokens > self.max_context:
      raise ValueError(f"a prompt of {length} tokens and {options.max_tokens} new ones exceed the context of {self.max_context}; shorten the prompt or max_tokens"
          + (", or start the engine with more pages" if self.max_context < self._decoder.context else ""))
    if len(prompt.tiles) and self._images is None:
      raise ValueError("this model does not see images; leave them out")
    if len(prompt.tiles) > (capacity := self._images.capacity if self._images else 0):
      raise ValueError(f"{len(prompt.tiles)} tiles of images are more than the {capacity} kept; send fewer, or start the engine with more")
    if options.thinking and self._think is None:
      raise ValueError("this model has no thinking tokens; leave thinking out")
    if bad := [i for i in options.banned if not 0 <= i < self._decoder.vocab_size]:
      raise ValueError(f"banned id {bad[0]} is no token; use 0 to {self._decoder.vocab_size - 1}")
    stop_ids = self._end_ids if options.stop_ids is None else options.stop_ids
    request = Request(next(self._ids), prompt, options, frozenset(stop_ids), images.digests(prompt), sampling.asks_of(options))
    self._scheduler.add(request, self._first_state(prompt, options))
    return request.id

  def step(self) -> list[Token]:
    """Starts a call of the device and reports the tokens of the one before."""
    tokens = []
    if self._scheduler.short():
      tokens += self._collect()
      states = jax.device_get(self._slots.state)
      self._scheduler.preempt(lambda slot: jax.tree.map(lambda x: x[slot], states))
    plan = self._scheduler.plan(self.params)
    started = None if plan is None else self._start(plan)
    tokens += self._collect()
    self._in_flight = started
    if self.drafts:  # guesses need the last token
      tokens += self._collect()
    return tokens

  def cancel(self, request_id: int, sample: int | None = None) -> None:
    """Ends a request, or one of its samples, without a word and frees what it holds."""
    self._scheduler.cancel(request_id, sample)

  def stream(self, prompt: Example, options: Options) -> Iterator[Token]:
    """The tokens of one prompt as they come; giving up the iterator ends the request. Raises as `generate` does."""
    self._check_idle()
    request = self.submit(prompt, options)
    try:
      ended = 0
      while ended < options.n:
        for token in self.step():
          if token.request == request:
            ended += token.finish is not None
            yield token
    finally:
      self.cancel(request)

  def generate(self, prompts: Sequence[Example], options: Options) -> list[list[list[Token]]]:
    """The answers to many prompts: [prompt][sample] -> its tokens, the end token included.

    Raises:
      ValueError: a prompt that cannot be answered, or other requests in the engine, whose tokens would be lost.
    """
    self._check_idle()
    requests = {}
    try:
      for i, prompt in enumerate(prompts):
        requests[self.submit(prompt, options)] = i
    except ValueError:
      for request in requests:
        self.cancel(request)
      raise
    answers = [[[] for _ in range(options.n)] for _ in prompts]
    while self.busy:
      for token in self.step():
        answers[requests[token.request]][token.sample].append(token)
    return answers

  def _check_idle(self):
    if self.busy:
      raise ValueError("the engine is answering others; submit and step by hand")

  def update_weights(self, version: int, params) -> None:
    """Puts other weights of the same shapes in place, from any mesh or dtype; nothing is compiled anew.

    Running samples go on with the keys and values they have; prefixes and images known by the old weights are forgotten.

    Raises:
      ValueError: a parameter of another shape.
    """
    self.params = self._weights.in_place_of(self.params, params)
    self.version = version
    self.flush()

  def flush(self) -> None:
    """Forgets known prefixes and images."""
    self._scheduler.flush()
    if self._images:
      self._images.flush()

  def stats(self) -> dict[str, int]:
    s = self._scheduler
    return {
        "waiting": len(s.waiting) + len(s.reading) + len(s.ready), "running": len(s.running), "pages_free": self._pool.free,
        "pages_total": self._pool.total, "prefix_tokens": s.prefix_tokens, "preemptions": s.preemptions, "steps": self._steps,
        "tiles_encoded": self._images.encoded if self._images else 0, "programs": len(self._programs.compiled), "version": self.version}

  def _first_state(self, prompt, options) -> sampling.State:
    phase = sampling.BEFORE if options.thinking else sampling.ANSWERING
    if self._think is not None:
      said = [i for i in prompt.tokens.tolist() if i not in self._think.blank]
      if said[-1:] == [self._think.open_id]:  # the chat template has begun the thought
        phase = sampling.THINKING
    return sampling.State(*map(np.int32, (prompt.tokens[-1], phase, 0, -1, options.max_tokens)))

  def _start(self, plan: Plan):
    if plan.copies:
      self._copy(plan.copies)
    for at in range(0, len(plan.entering), _ADMITTED):
      self._admit(plan.entering[at : at + _ADMITTED])
    if self.drafts:
      for i, sample in enumerate(plan.rows):
        plan.batch.drafts_SQ[i] = _guess(sample, self.drafts)
    visual = self._images.visual_XD if self._images else None
    self._pages, self._slots, told = self._programs.step(plan.shape, plan.asks, self.params, self._pages, self._slots, visual, plan.batch)
    self._steps += 1
    return plan.rows, told, self.version

  def _copy(self, copies):
    count = 1 << (len(copies) - 1).bit_length()
    pairs = np.zeros((2, count), np.int32)
    pairs[:, : len(copies)] = np.array(copies).T
    self._pages = self._programs.copy_pages(self._pages, *pairs)

  def _admit(self, samples: list[Sample]):
    nowhere = self._scheduler.slots
    rows = [(sampling.Rules.of(s.request.options, s.index), s.state) for s in samples]
    rows += [(sampling.Rules.of(Options(), 0), samples[0].state)] * (_ADMITTED - len(samples))
    slots = np.array([s.slot for s in samples] + [nowhere] * (_ADMITTED - len(samples)), np.int32)
    asked, state = jax.tree.map(lambda *x: np.stack(x), *rows)
    self._slots = self._programs.admit(self._slots, slots, asked, state)
    for sample in samples:
      if sample.request.options.repetition_penalty != 1:
        seen = np.zeros(self._decoder.vocab_size, bool)
        seen[sample.tokens] = True
        self._slots = self._programs.count_seen(self._slots, np.int32(sample.slot), seen)

  def _collect(self) -> list[Token]:
    """The tokens of the step in flight; samples that end with them are freed."""
    if self._in_flight is None:
      return []
    (rows, told, version), self._in_flight = self._in_flight, None
    tops = any(s.request.options.top_logprobs for s in rows)
    token, logprob, behaviour, thinking, forced, counts = told.rows()
    top_ids, top_logprobs = jax.device_get((told.top_ids, told.top_logprobs)) if tops else (None, None)
    tokens = []
    for r, sample in enumerate(rows):
      if sample.ended:
        continue
      options = sample.request.options
      if self.drafts:
        sample.read += counts[r][0] - 1
      for q in range(counts[r][0]):
        sample.tokens.append(token[r][q])
        finish = "stop" if token[r][q] in sample.request.stop_ids else "length" if sample.known == options.max_tokens else None
        n = options.top_logprobs
        top = tuple(zip(top_ids[r, q, :n].tolist(), top_logprobs[r, q, :n].tolist())) if n else ()
        tokens.append(Token(
            sample.request.id, sample.index, token[r][q], logprob[r][q], behaviour[r][q], "think" if thinking[r][q] else "answer",
            bool(forced[r][q]), version, top, finish))
        if finish:
          self._scheduler.end(sample)
          break
    return tokens


def _guess(sample: Sample, count: int) -> np.ndarray:
  """What followed the last time that the text's last tokens stood in it; -1 for no guess (prompt lookup, arXiv 2304.04487)."""
  guess, tokens = np.full(count, -1, np.int32), sample.tokens
  for end in range(max(sample.looked_through, 1), len(tokens)):  # what token `end` follows
    for size in (3, 2):
      sample.followed[tuple(tokens[max(end - size, 0) : end])] = end
  sample.looked_through = len(tokens)
  most = len(sample.request.prompt.tokens) + sample.request.options.max_tokens - 1 - len(tokens)  # tokens after the next one
  found = next((at for size in (3, 2) if (at := sample.followed.get(tuple(tokens[-size:]))) is not None), len(tokens))
  ahead = tokens[found : found + min(count, most)]
  guess[: len(ahead)] = ahead
  return guess
