"""The engine says what the trainer's forward pass says, whoever else is answered beside, and gives back all it takes."""

import itertools

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bluelm_jax.data.chat import ChatFormat
from bluelm_jax.evaluation import budgets
from bluelm_jax.evaluation import text
from bluelm_jax.inference import schedule
from bluelm_jax.inference.request import Options
from bluelm_jax.inference.request import plain_prompt
from bluelm_jax.interop import load
from bluelm_jax.interop import mapping
from bluelm_jax.models import quantized
from bluelm_jax.sharding import rules
from tests.inference import composed
from tests.inference import small_engine
from tests.inference.small_engine import ids


def run(engine, requests):
  """Submits each of (prompt, options) two steps after the one before; request -> sample -> tokens."""
  answers = {}
  waiting = list(requests)
  step = 0
  while waiting or engine.busy:
    if waiting and step % 2 == 0:
      prompt, options = waiting.pop(0)
      answers[engine.submit(prompt, options)] = [[] for _ in range(options.n)]
    for token in engine.step():
      answers[token.request][token.sample].append(token)
    step += 1
  return list(answers.values())


def without_thoughts(logits):
  """Of an answer in which no thought may be opened."""
  return np.where(np.isin(np.arange(logits.shape[1]), [small_engine.THINK.open_id, small_engine.THINK.close_id]), -np.inf, logits)


def check_empty(engine):
  stats = engine.stats()
  assert stats["pages_free"] == stats["pages_total"] and stats["running"] == stats["waiting"] == 0


def test_answers_are_the_forward_pass_whoever_is_beside():
  """Greedy, ragged, with an image, and joining a running batch; log-probabilities are the trainer's."""
  engine, asked = small_engine.shared_engine(), small_engine.prompts()
  options = Options(max_tokens=12, top_logprobs=3)
  answers = [a for (a,) in run(engine, [(p, options) for p in asked])]
  assert len(set(sum(map(ids, answers), []))) > 5, "an answer that says one thing shows little"
  for prompt, answer in zip(asked, answers):
    logits = small_engine.logits(prompt, ids(answer))[:-1]
    assert ids(answer) == without_thoughts(logits).argmax(-1).tolist()
    expected = np.asarray(jax.nn.log_softmax(logits))
    np.testing.assert_allclose([t.logprob for t in answer], expected[np.arange(12), ids(answer)], atol=1e-4)
    for token, row in zip(answer, expected):
      assert [i for i, _ in token.top] == np.argsort(-row)[:3].tolist()
      np.testing.assert_allclose([x for _, x in token.top], np.sort(row)[::-1][:3], atol=1e-4)
    assert [t.finish for t in answer] == [None] * 11 + ["length"]
  check_empty(engine)


def test_what_is_said_about_an_image_is_what_transformers_says(tmp_path):
  """It has no such model: its parts are joined by hand (`composed.py`)."""
  model, params = small_engine.model_and_params()
  flat = flax.traverse_util.flatten_dict(params, sep="/")
  load.save(tmp_path / "ours", model.config, {p: mapping.in_memory(np.asarray(x)) for p, x in flat.items()})
  prompts = small_engine.prompts()
  answers = small_engine.shared_engine().generate(prompts, Options(max_tokens=24))
  never = [small_engine.THINK.open_id, small_engine.THINK.close_id]
  assert [ids(answer) for (answer,) in answers] == composed.greedy(tmp_path / "ours", prompts, 24, tmp_path / "theirs", never)


def test_draws_depend_on_the_seed_alone():
  """Not on what is beside them, nor on whether pages ran out and a text was read again."""
  asked = small_engine.prompts()
  requests = [(p, Options(max_tokens=40, temperature=1.0, seed=i, n=2)) for i, p in enumerate(asked)]
  requests += [(asked[0], Options(max_tokens=40)), (asked[2], Options(max_tokens=40, temperature=0.7, top_p=0.8, seed=9))]
  engine = small_engine.shared_engine()
  together = [[ids(s) for s in answer] for answer in run(engine, requests)]
  alone = [[ids(s) for s in run(engine, [r])[0]] for r in requests]
  assert together == alone
  assert together[0][0] != together[0][1]
  before = engine.stats()["preemptions"]
  scarce = small_engine.new_engine(pages=12)
  assert [[ids(s) for s in answer] for answer in run(scarce, requests)] == alone
  assert scarce.stats()["preemptions"] > 0 and before == engine.stats()["preemptions"]
  check_empty(engine)
  check_empty(scarce)


def test_behaviour_logprobs_are_of_the_distribution_drawn_from():
  engine, prompt = small_engine.shared_engine(), small_engine.prompts()[0]
  (answer,), = run(engine, [(prompt, Options(max_tokens=12, temperature=0.5, top_k=50, seed=3))])
  logits = without_thoughts(small_engine.logits(prompt, ids(answer))[:-1]) / 0.5
  kth = np.sort(logits, axis=-1)[:, -50, None]
  kept = np.where(logits >= kth, logits, -np.inf)
  expected = kept - np.log(np.exp(kept).sum(-1, keepdims=True))
  np.testing.assert_allclose([t.behaviour_logprob for t in answer], expected[np.arange(12), ids(answer)], atol=2e-4)


def test_samples_share_their_prompt_and_a_known_beginning_is_not_read_again():
  engine = small_engine.shared_engine()
  engine.flush()
  before = engine.stats()
  change = lambda name: engine.stats()[name] - before[name]
  long = plain_prompt(np.random.default_rng(0).integers(50, 900, 200), 1)
  first = run(engine, [(long, Options(max_tokens=3, temperature=1.0, n=4))])
  assert change("steps") <= 5, "200 tokens are one step's, whatever n is"
  again = run(engine, [(long, Options(max_tokens=3, temperature=1.0, n=4))])
  assert [[ids(s) for s in a] for a in again] == [[ids(s) for s in a] for a in first]
  assert change("prefix_tokens") == 199 // 16 * 16
  other = plain_prompt([*long.tokens[:100], 5, *long.tokens[101:]], 1)
  run(engine, [(other, Options(max_tokens=1))])
  assert change("prefix_tokens") == 199 // 16 * 16 + 96
  check_empty(engine)


def test_an_image_is_encoded_once_for_a_version_of_the_weights(monkeypatch):
  engine = small_engine.shared_engine()
  engine.flush()
  before, shown = engine.stats()["tiles_encoded"], small_engine.prompts()[1]
  options = Options(max_tokens=2, temperature=1.0, n=3)
  run(engine, [(shown, options), (shown, options)])
  assert engine.stats()["tiles_encoded"] - before == len(shown.tiles)
  other = shown._replace(tiles=255 - shown.tiles)
  calls, encode = [], engine._images._encode
  monkeypatch.setattr(engine._images, "_encode", lambda *args: calls.append(args[2].shape[0]) or encode(*args))
  for prompt in (shown, other, shown._replace(tiles=shown.tiles // 2)):
    engine.submit(prompt, options)
  while engine.busy:
    engine.step()
  assert calls == [4], "the tiles of two prompts go together, one's are known"
  monkeypatch.undo()
  before += 2 * len(shown.tiles)
  engine.flush()
  run(engine, [(shown, options)])
  assert engine.stats()["tiles_encoded"] - before == 2 * len(shown.tiles)


def test_new_weights_are_used_at_once_and_nothing_is_compiled(request):
  engine = small_engine.shared_engine()
  request.addfinalizer(lambda: engine.update_weights(0, small_engine.model_and_params()[1]))
  asked = small_engine.prompts()
  options = Options(max_tokens=10)
  engine.warm_up()
  programs = engine.stats()["programs"]
  old = [ids(a) for (a,) in run(engine, [(p, options) for p in asked])]
  params = jax.tree.map(lambda x: np.asarray(x, np.float64), small_engine.model_and_params(seed=1)[1])  # of another dtype
  running = engine.submit(asked[0], options)
  tokens = engine.step() + engine.step() + engine.step() + engine.step()
  engine.update_weights(7, params)
  while engine.busy:
    tokens += engine.step()
  assert {t.version for t in tokens if t.request == running} == {0, 7}
  new = [ids(a) for (a,) in run(engine, [(p, options) for p in asked])]
  run(engine, [(asked[0], Options(max_tokens=3, temperature=1.0, **more)) for more in ({}, {"top_k": 3})])
  assert new != old and engine.stats()["programs"] == programs
  narrow = jax.tree.map(lambda x: x.astype(np.float32), params)
  for prompt, answer in zip(asked, new):
    assert answer == without_thoughts(small_engine.logits(prompt, answer, narrow)[:-1]).argmax(-1).tolist()
  with pytest.raises(ValueError, match="has shape"):
    engine.update_weights(8, jax.tree.map(lambda x: x[..., :1], params))
  check_empty(engine)


def test_weights_taken_over_are_copies():
  """Whoever gave them may give their memory away."""
  engine, prompt = small_engine.shared_engine(), small_engine.prompts()[0]
  given = jax.tree.map(jnp.copy, small_engine.model_and_params()[1])
  expected = run(engine, [(prompt, Options(max_tokens=4))])
  engine.update_weights(0, given)
  jax.tree.map(lambda x: x.delete(), given)
  assert [t.token for t in run(engine, [(prompt, Options(max_tokens=4))])[0][0]] == [t.token for t in expected[0][0]]


def test_a_thought_is_begun_by_the_template_alone():
  """What a user wrote is before the marker of the assistant's turn."""
  engine, think = small_engine.shared_engine(), small_engine.THINK
  options = Options(max_tokens=12, thinking=True, thinking_token_budget=2)
  phase = lambda *end: run(engine, [(plain_prompt([7, 8, *end]), options)])[0][0][0].phase
  assert phase(think.open_id) == phase(think.open_id, *think.blank[:1]) == "think"
  assert phase(think.open_id, 9) == "answer"


def test_a_request_ends_where_it_is_told():
  engine, prompt = small_engine.shared_engine(), small_engine.prompts()[0]
  (free,), = run(engine, [(prompt, Options(max_tokens=8))])
  (stopped,), = run(engine, [(prompt, Options(max_tokens=8, stop_ids=(free[3].token,)))])
  first = ids(free).index(free[3].token)
  assert ids(stopped) == ids(free)[: first + 1] and stopped[-1].finish == "stop"
  (other,), = run(engine, [(prompt, Options(max_tokens=8, banned=tuple(set(ids(free)))))])
  assert not set(ids(other)) & set(ids(free))
  stream = engine.stream(prompt, Options(max_tokens=300))
  next(stream)
  stream.close()
  assert not engine.busy
  check_one_sample_ends(engine, prompt, ids(free))
  cancelled = [engine.submit(p, Options(max_tokens=40, n=3)) for p in small_engine.prompts()]
  for request in cancelled:
    engine.step()
    engine.cancel(request)
  assert not [t for _ in range(3) for t in engine.step()]
  check_empty(engine)


@pytest.mark.parametrize("ahead", [dict(drafts=2), dict(steps=3)])
def test_a_sample_ends_wherever_it_is(ahead):
  """Waiting, half read, sharing pages with its siblings, sent back for want of pages, with guesses ahead or several steps a call."""
  engine = small_engine.new_engine(pages=9, **ahead)
  whole, steps = {}, 0
  for at in itertools.count(-1):  # before the first step nobody is
    if at > steps:  # as the last one, after the end
      break
    requests = [engine.submit(p, Options(max_tokens=30, n=2)) for p in small_engine.prompts()[::2]]
    said, length = {(r, i): [] for r in range(2) for i in range(2)}, 30
    for step in itertools.count():
      if step == at:
        engine.cancel(requests[1], 0)
        length = len(said[1, 0])
      if not engine.busy:
        break
      for token in engine.step():
        said[requests.index(token.request), token.sample].append(token.token)
    check_empty(engine)
    whole, steps = whole or dict(said), steps or step
    cut = said.pop((1, 0))
    assert said == {key: tokens for key, tokens in whole.items() if key != (1, 0)} and cut == whole[1, 0][:length]
  assert engine.stats()["preemptions"] > 0


def test_a_gpu_decodes_eight_rows_at_least(monkeypatch):
  asked = [(p, Options(max_tokens=6)) for p in small_engine.prompts()]
  expected = [ids(a) for (a,) in run(small_engine.shared_engine(), asked)]
  monkeypatch.setattr(schedule, "target_platform", lambda: "gpu")
  engine = small_engine.new_engine(slots=3, drafts=2)
  assert [ids(a) for (a,) in run(engine, asked)] == expected
  assert {shape.decodes for shape in engine._scheduler.shapes()} == {8}


def check_one_sample_ends(engine, prompt, whole):
  """Before it is read, and while it draws: the others say all they have to say."""
  request = engine.submit(prompt, Options(max_tokens=8, n=3))
  engine.cancel(request, 0)
  said = {i: [] for i in range(3)}
  while engine.busy:
    for token in engine.step():
      said[token.sample].append(token.token)
    if len(said[1]) == 3:
      engine.cancel(request, 1)
  assert said == {0: [], 1: whole[:3], 2: whole}


def test_guesses_change_nothing_but_the_number_of_steps():
  """A text that repeats itself, so that some guesses come true; greedy, at random, and with a thought cut short."""
  prompt = plain_prompt([7, 8, 9, 10] * 10, 1)
  plain, guessing = small_engine.shared_engine(), small_engine.new_engine(drafts=3)
  begun = plain_prompt([*prompt.tokens, small_engine.THINK.open_id])
  for prompt, rules in ((prompt, {}), (prompt, dict(temperature=0.5, seed=5)), (begun, dict(temperature=0.5, seed=6, thinking=True, thinking_token_budget=6))):
    options = Options(max_tokens=40, repetition_penalty=0.3, **rules)
    before = plain.stats()["steps"], guessing.stats()["steps"]
    (expected,), (found,) = run(plain, [(prompt, options)])[0], run(guessing, [(prompt, options)])[0]
    assert ids(found) == ids(expected)
    np.testing.assert_allclose([t.logprob for t in found], [t.logprob for t in expected], atol=1e-4)
    assert [(t.phase, t.forced, t.finish) for t in found] == [(t.phase, t.forced, t.finish) for t in expected]
    assert guessing.stats()["steps"] - before[1] < plain.stats()["steps"] - before[0]
  assert [t.phase for t in found].count("think") <= 7 and [t.token for t in found if t.forced][-1] == small_engine.THINK.close_id
  check_empty(guessing)


def test_several_steps_of_one_call_change_nothing_but_their_number():
  """Ends of both kinds within a call, samples beside each other that ask for more, and pages taken back."""
  plain, several = small_engine.shared_engine(), small_engine.new_engine(pages=8, steps=3)
  prompts = small_engine.prompts()
  begun = plain_prompt([*plain_prompt([7, 8, 9, 10] * 10, 1).tokens, small_engine.THINK.open_id])
  (greedy,), = run(plain, [(prompts[0], Options(max_tokens=8))])
  requests = [
      (prompts[0], Options(max_tokens=8)), (prompts[1], Options(max_tokens=1)), (prompts[0], Options(max_tokens=31, stop_ids=(greedy[4].token,))),
      (prompts[2], Options(max_tokens=40, temperature=0.7, seed=4, n=3)),
      (begun, Options(max_tokens=20, temperature=0.5, seed=6, thinking=True, thinking_token_budget=6)),
      (prompts[0], Options(max_tokens=7, temperature=0.5, top_k=50, seed=3, top_logprobs=2))]
  before = plain.stats()["steps"]
  expected, found = run(plain, requests), run(several, requests)
  for one, other in zip(sum(expected, []), sum(found, []), strict=True):
    assert [(t.token, t.phase, t.forced, t.finish) for t in other] == [(t.token, t.phase, t.forced, t.finish) for t in one]
    for name in ("logprob", "behaviour_logprob"):
      np.testing.assert_allclose([getattr(t, name) for t in other], [getattr(t, name) for t in one], atol=1e-4)
  stats = several.stats()
  assert stats["preemptions"] > 0 and stats["steps"] < plain.stats()["steps"] - before
  check_empty(several)
  assert any(shape.steps == 3 for _, shape in several._programs.compiled if len(shape) == 5), "no call had several steps"
  several.warm_up()
  programs = several.stats()["programs"]
  run(several, requests)
  assert several.stats()["programs"] == programs, "warming up left a program out"


def test_a_curve_of_budgets_counts_what_was_thought(monkeypatch):
  """By templates that begin the thought: a random model closes none, so all of a budget is used."""
  monkeypatch.setattr(ChatFormat, "prompt", lambda self, messages, thinking: plain_prompt([7, 8, small_engine.THINK.open_id]))
  points = budgets.curve(small_engine.shared_engine(), small_engine.chat(), small_engine.TOKENIZER, text.problems(4, 0), (1, 6))
  assert [(p.budget, p.thought, p.cut, p.n) for p in points] == [(1, 1.0, 1.0, 4), (6, 6.0, 1.0, 4)]
  check_empty(small_engine.shared_engine())


def test_what_cannot_be_answered_is_refused():
  engine, prompt = small_engine.shared_engine(), small_engine.prompts()[0]
  with pytest.raises(ValueError, match="exceed the context of 400; shorten"):
    engine.submit(prompt, Options(max_tokens=399))
  with pytest.raises(ValueError, match="banned id 99999 is no token"):
    engine.submit(prompt, Options(banned=(99999,)))
  with pytest.raises(ValueError, match="the prompt is empty"):
    engine.submit(plain_prompt([], 1), Options())
  with pytest.raises(ValueError, match="exceed the context of 48; .* or start the engine with more pages"):
    small_engine.new_engine(pages=3).submit(prompt, Options(max_tokens=60))
  with pytest.raises(ValueError, match="exceed the context"):
    engine.generate([prompt, prompt._replace(tokens=np.zeros(500, np.int32))], Options())
  assert not engine.busy, "those that could be answered are let go"
  engine.submit(prompt, Options(max_tokens=1))
  for ask in (lambda: engine.generate([prompt], Options()), lambda: next(engine.stream(prompt, Options()))):
    with pytest.raises(ValueError, match="answering others"):
      ask()
  while engine.busy:
    engine.step()
  for options, words in (
      (dict(group=32), "group 32 has no effect without bits"), (dict(kv_dtype="int4"), "kv_dtype 'int4' is unknown"), (dict(drafts=-1), "drafts -1"), (dict(drafts=1, steps=2), "steps 2 must be"),
      (dict(prefill_tokens=16), "prefill_tokens 16 is below 32"), (dict(bits=3), "8 or 4 bits, not 3")):
    with pytest.raises(ValueError, match=words):
      small_engine.new_engine(**options)
  with pytest.raises(ValueError, match="no thinking tokens"):
    small_engine.new_engine(think=None).submit(prompt, Options(thinking=True))
  with pytest.raises(ValueError, match="tiles of images are more than the 0 kept"):
    small_engine.new_engine(tiles=0).submit(small_engine.prompts()[1], Options())


def test_tensor_ranks_say_what_one_device_says():
  """Heads, neurons and vocabulary over two ranks of eight devices, with an image; the same draws and log-probabilities."""
  options = Options(max_tokens=8, temperature=1.0, seed=2, n=2)
  requests = [(p, options) for p in small_engine.prompts()[:2]]
  expected = run(small_engine.shared_engine(), requests)
  engine = small_engine.new_engine(mesh=rules.make_mesh({"data": 4, "tensor": 2}), steps=3)
  found = run(engine, requests)
  for answer, other in zip(sum(found, []), sum(expected, [])):
    assert ids(answer) == ids(other)
    np.testing.assert_allclose([t.logprob for t in answer], [t.logprob for t in other], atol=1e-4)
  trained = jax.device_put(small_engine.model_and_params()[1], rules.replicated(rules.make_mesh({"fsdp": 8})))  # another mesh's
  engine.update_weights(1, trained)
  again = run(engine, requests)
  assert [ids(s) for a in again for s in a] == [ids(s) for a in expected for s in a]


@pytest.mark.parametrize("bits,group,most", [(8, None, 0.05), (4, 32, 0.5)])
def test_weights_in_fewer_bits(bits, group, most):
  """The engine computes what the trainer computes with the rounded weights, and those are near the whole ones."""
  engine, prompt, params = small_engine.new_engine(bits=bits, group=group), small_engine.prompts()[2], small_engine.model_and_params()[1]
  (answer,), = run(engine, [(prompt, Options(max_tokens=12))])
  made_whole = lambda path, x: jax.vmap(quantized.whole)(x) if "layers" in [p.key for p in path] else quantized.whole(x)
  rounded = jax.tree_util.tree_map_with_path(made_whole, quantized.quantize(params, bits, group), is_leaf=lambda x: isinstance(x, quantized.Quantized))
  said = lambda p: np.asarray(jax.nn.log_softmax(small_engine.logits(prompt, ids(answer), p)[:-1]))[np.arange(12), ids(answer)]
  np.testing.assert_allclose([t.logprob for t in answer], said(rounded), atol=1e-4)
  assert 0 < np.abs(said(rounded) - said(params)).mean() < most


def test_keys_and_values_in_eight_bits():
  engine, prompt = small_engine.new_engine(kv_dtype="int8"), small_engine.prompts()[1]
  (answer,), = run(engine, [(prompt, Options(max_tokens=12))])
  expected = np.asarray(jax.nn.log_softmax(small_engine.logits(prompt, ids(answer))[:-1]))[np.arange(12), ids(answer)]
  difference = np.abs(np.array([t.logprob for t in answer]) - expected)
  assert 1e-6 < difference.mean() < 0.05
