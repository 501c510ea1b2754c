"""What carries nothing goes without a trace; the rest is chosen by its scores."""

import dataclasses

import numpy as np
import pytest

from bluelm_jax.compression import choose
from bluelm_jax.compression import fit
from bluelm_jax.compression import prune
from bluelm_jax.compression.importance import Importance
from bluelm_jax.interop import load
from bluelm_jax.interop import mapping
from bluelm_jax.kernels.rotary import RopeScaling
from bluelm_jax.models import presets
from bluelm_jax.models.config import AdapterConfig
from tests.compression import planted

TEACHER, STUDENT = planted.TEACHER, planted.STUDENT


def pair(**fields):
  """(teacher, student); the student's eps makes its norms exact."""
  teacher, student = (dataclasses.replace(c, **fields) for c in (TEACHER, STUDENT))
  return teacher, dataclasses.replace(student, norm_eps=teacher.norm_eps * teacher.embed_dim / student.embed_dim)


@pytest.mark.parametrize("variant", planted.VARIANTS)
def test_a_planted_student_is_found(variant, float64):
  """Layers, channels, neurons and KV groups that write zeros score lowest; without them the logits are the teacher's."""
  teacher, student = pair(**{"norm_eps": 1e-2, **planted.VARIANTS[variant]})
  plant, ids = planted.plant(student, teacher), planted.tokens()
  values, kept = planted.pruned(plant.params, teacher, student, planted.measure(teacher, plant.params, ids))
  for name in ("layers", "width", "neurons", "groups"):
    np.testing.assert_array_equal(getattr(kept, name), getattr(plant, name))
  np.testing.assert_array_equal(kept.gains, np.sqrt(teacher.embed_dim / student.embed_dim))
  other = planted.tokens(seed=1)  # not what it was measured on
  np.testing.assert_allclose(planted.logits(student, values, other), planted.logits(teacher, plant.params, other), atol=1e-9)


def test_what_remains_of_removed_channels_is_eps(float64):
  """With the teacher's own eps a norm is the teacher's with eps D' / D: the logits differ, and as eps shrinks the less."""
  plant, ids = planted.plant(STUDENT, TEACHER), planted.tokens()
  found, errors = planted.measure(TEACHER, plant.params, ids), []
  for eps in (1e-4, 1e-6):
    teacher, student = (dataclasses.replace(c, norm_eps=eps) for c in (TEACHER, STUDENT))
    values, _ = planted.pruned(plant.params, teacher, student, found)
    errors.append(np.abs(planted.logits(student, values, ids) - planted.logits(teacher, plant.params, ids)).max())
  assert errors[0] > 1e-6 and errors[1] < 0.02 * errors[0]


@pytest.mark.parametrize("scan_layers", [True, False])
def test_dead_layers_leave_no_bit(scan_layers):
  """Nothing is added to the residual stream, and all that is left is computed at the shapes it had."""
  teacher = dataclasses.replace(TEACHER, dtype="float32", param_dtype="float32", scan_layers=scan_layers)
  student = dataclasses.replace(teacher, num_layers=2)
  plant, ids = planted.plant(student, teacher), planted.tokens()
  values, kept = planted.pruned(plant.params, teacher, student, planted.measure(teacher, plant.params, ids))
  np.testing.assert_array_equal(kept.layers, plant.layers)
  assert planted.logits(student, values, ids).tobytes() == planted.logits(teacher, plant.params, ids).tobytes()


def one_term(weight, living, rng):
  """Of every output of weight [inputs, outputs], all but one of its living inputs become zero; an output of zeros stays so."""
  chosen = rng.choice(living, weight.shape[1])
  keep = np.zeros_like(weight, bool)
  keep[chosen, np.arange(weight.shape[1])] = True
  weight[~keep & np.isin(np.arange(len(weight)), living)[:, None]] = 0


@pytest.mark.parametrize("width", [dict(mlp_dim=32), dict(num_heads=4, num_kv_heads=2), dict(mlp_dim=32, num_heads=4, num_kv_heads=2)])
def test_dead_neurons_and_groups_leave_no_bit(width):
  """Every product with a weight that changes its shape is given one term that is not zero a sum, so that no order in which a
  backend adds can change its bits. Dense weights may round otherwise: see the float64 test above."""
  teacher = dataclasses.replace(TEACHER, dtype="float32", param_dtype="float32")
  student = dataclasses.replace(teacher, **width)
  plant, ids, rng = planted.plant(student, teacher), planted.tokens(), np.random.default_rng(2)
  of_group = teacher.num_heads // teacher.num_kv_heads
  for i, layer in enumerate(plant.layers):
    weight = lambda name: plant.params[f"layers/{name}"][layer]
    for name in ("attention/q", "attention/k", "attention/v", "mlp/gate", "mlp/up"):
      one_term(weight(name).reshape(teacher.embed_dim, -1), np.arange(teacher.embed_dim), rng)
    heads = (plant.groups[i][:, None] * of_group + np.arange(of_group)).reshape(-1, 1) * teacher.head_dim + np.arange(teacher.head_dim)
    one_term(weight("attention/o").reshape(-1, teacher.embed_dim), heads.reshape(-1), rng)
    one_term(weight("mlp/down"), plant.neurons[i], rng)
  values, kept = planted.pruned(plant.params, teacher, student, planted.measure(teacher, plant.params, ids))
  np.testing.assert_array_equal(kept.neurons, plant.neurons)
  np.testing.assert_array_equal(kept.groups, plant.groups)
  assert planted.logits(student, values, ids).tobytes() == planted.logits(teacher, plant.params, ids).tobytes()


def test_nothing_to_prune_changes_nothing(float64):
  plant = planted.plant(TEACHER, TEACHER)
  values, kept = planted.pruned(plant.params, TEACHER, TEACHER, random_importance(TEACHER))
  assert np.array_equal(kept.gains, np.ones(9)) and all(np.array_equal(values[p], x) for p, x in plant.params.items())


@pytest.mark.parametrize("of_teacher,of_student", [(True, False), (False, True)])
def test_tables_may_be_tied_and_untied(of_teacher, of_student, float64):
  teacher, student = dataclasses.replace(TEACHER, tie_embeddings=of_teacher), dataclasses.replace(STUDENT, tie_embeddings=of_student)
  plant = planted.plant(student, teacher)
  values, kept = planted.pruned(plant.params, teacher, student, random_importance(teacher))
  np.testing.assert_array_equal(values["embedding"], plant.params["embedding"][:, kept.width])
  if of_teacher:
    np.testing.assert_array_equal(values["lm_head"], values["embedding"].T)


def test_smaller_groups_keep_their_best_query_heads(float64):
  teacher = dataclasses.replace(TEACHER, num_layers=1, num_heads=12, num_kv_heads=3)
  student = dataclasses.replace(teacher, num_heads=4, num_kv_heads=2)
  scores = random_importance(teacher)._replace(heads=np.array([[1, 5, 5, 0, 2, 2, 2, 2, 0, 9, 0, 3]], float))
  plant = planted.plant(student, teacher)
  values, kept = planted.pruned(plant.params, teacher, student, scores)
  assert kept.groups.tolist() == [[0, 2]] and kept.heads.tolist() == [[1, 2, 9, 11]]  # 7.1 and 9.5 against 4
  np.testing.assert_array_equal(values["layers/attention/q"], plant.params["layers/attention/q"][:, :, kept.heads[0]])
  np.testing.assert_array_equal(values["layers/attention/o"], plant.params["layers/attention/o"][:, kept.heads[0]])
  np.testing.assert_array_equal(values["layers/attention/v"], plant.params["layers/attention/v"][:, :, [0, 2]])


def test_the_first_of_equal_scores_stays():
  assert choose.best(np.array([2.0, 1.0, 2.0, 0.0, 1.0, 1.0]), 4).tolist() == [0, 1, 2, 4]
  assert choose.best(np.array([1.0, 1.0 + 1e-7, 1.0 - 1e-7]), 1).tolist() == [0]  # the noise of float32
  assert choose.best(np.array([0.0, 1e-30, 1e-3]), 2).tolist() == [1, 2]


def test_layers_are_read_one_at_a_time(float64):
  """Of a stacked parameter no more than a layer is asked for, and only layers that stay."""
  plant, asked = planted.plant(STUDENT, TEACHER), []

  def tensor(path, value):
    def read(i=None):
      asked.append((path, i))
      return value if i is None else value[i]

    return mapping.Tensor(value.shape, value.dtype, read)

  kept = choose.choose(random_importance(TEACHER), TEACHER, STUDENT)
  tensors = prune.prune({p: tensor(p, x) for p, x in plant.params.items()}, TEACHER, STUDENT, kept)
  assert not asked
  for t in tensors.values():
    t.read()
  assert {i for p, i in asked if p.startswith("layers/")} == set(kept.layers.tolist())
  assert {i for p, i in asked if not p.startswith("layers/")} == {None}


def random_importance(config) -> Importance:
  rng, norms = np.random.default_rng(3), 2 * config.num_layers + 1
  shapes = ((norms, config.embed_dim), (norms, config.embed_dim), (config.num_layers, config.num_heads), (config.num_layers, config.mlp_dim), (config.num_layers,))
  found = Importance(*(rng.random(s) for s in shapes))
  return found._replace(share=found.share / found.share.sum(axis=1, keepdims=True))


def test_the_7b_teacher_becomes_the_3b_student():
  """At true size, nothing read: every parameter of the student's decoder, in its shape."""
  teacher, student = presets.bluelm_7b_teacher(), presets.bluelm_2_5_3b()
  fit.check(teacher, student)
  fit.check(presets.miniature_teacher(), presets.miniature())
  kept = choose.choose(random_importance(teacher), teacher, student.decoder)
  tensors = {p: mapping.Tensor(s, np.dtype("float32"), None) for p, s in load.param_shapes(teacher).items()}
  found = {p: t.shape for p, t in prune.prune(tensors, teacher, student, kept).items()}
  assert found == {p: s for p, s in load.param_shapes(student).items() if p.startswith("decoder/")}


def with_decoder(decoder):
  double = dict(dtype="float64", param_dtype="float64")
  vision = dataclasses.replace(presets.miniature().vision, image_size=16, patch_size=4, embed_dim=12, mlp_dim=16, **double)
  return dataclasses.replace(presets.miniature(), vision=vision, decoder=decoder, adapter=AdapterConfig(hidden_dim=20))


def test_the_adapter_follows_the_width(float64):
  """A planted student is found behind an adapter too, and reads images as its teacher does."""
  decoders = pair(norm_eps=1e-2)
  teacher, student = map(with_decoder, decoders)
  plant, rng = planted.plant(*decoders[::-1]), np.random.default_rng(4)
  params = {p: 0.3 * rng.standard_normal(s) for p, s in load.param_shapes(teacher).items()}
  params |= {f"decoder/{p}": x for p, x in plant.params.items()}
  dead = np.setdiff1d(np.arange(TEACHER.embed_dim), plant.width)
  params["adapter/down"][:, dead] = params["adapter/down_bias"][dead] = 0
  ids, tiles = planted.tokens((2, 12)), rng.integers(0, 255, (1, 2, 16, 16, 3)).astype(np.uint8)
  index = np.full((2, 12), -1, np.int32)
  index[0, 2:6], index[1, 5:9] = np.arange(4), np.arange(4, 8)
  images = dict(tiles=tiles, vision_index=index)
  values, kept = planted.pruned(params, teacher, student, planted.measure(teacher, params, ids, **images))
  np.testing.assert_array_equal(kept.width, plant.width)
  assert all(values[p] is x for p, x in params.items() if p.startswith("vision/"))
  np.testing.assert_allclose(planted.logits(student, values, ids, **images), planted.logits(teacher, params, ids, **images), atol=1e-9)
  assert np.abs(planted.logits(student, values, ids, **images) - planted.logits(student, values, ids)).max() > 0.1


REFUSED = [
    (dict(vocab_size=41), "the teacher's vocab_size is 40, the student's 41"), (dict(head_dim=4), "head_dim is 8, the student's 4"),
    (dict(rope_theta=1e6), "rope_theta"), (dict(rope_scaling=RopeScaling("yarn", 8.0, 16)), "rope_scaling"), (dict(qk_norm=True), "qk_norm"),
    (dict(qkv_bias=True), "qkv_bias"), (dict(num_layers=5), "num_layers 5 exceeds the teacher's 4; choose a smaller student"),
    (dict(embed_dim=48), "embed_dim 48"), (dict(mlp_dim=57), "mlp_dim 57"), (dict(num_heads=8, num_kv_heads=4), "num_kv_heads 4"),
    (dict(num_heads=8, num_kv_heads=2), "4 query heads to a KV head, the teacher 2"), (dict(context=65), "context 65")]


@pytest.mark.parametrize("change,words", REFUSED)
def test_impossible_pairs_are_refused(change, words):
  fit.check(TEACHER, STUDENT)
  for whole in (lambda c: c, with_decoder):
    with pytest.raises(ValueError, match=words) as error:
      fit.check(whole(TEACHER), whole(dataclasses.replace(STUDENT, **change)))
    assert "\n" not in str(error.value) and "; " in str(error.value)


def test_pairs_that_see_images():
  teacher, student = with_decoder(TEACHER), with_decoder(STUDENT)
  fit.check(teacher, student)
  fit.check(TEACHER, student)  # a new tower and adapter
  with pytest.raises(ValueError, match="the teacher sees images and the student does not"):
    fit.check(teacher, STUDENT)
  with pytest.raises(ValueError, match="different vision towers"):
    fit.check(teacher, dataclasses.replace(student, vision=dataclasses.replace(student.vision, num_layers=1)))
  with pytest.raises(ValueError, match="hidden_dim 20, the student's 24, .* choose a student whose adapter has hidden_dim = 20"):
    fit.check(teacher, dataclasses.replace(student, adapter=AdapterConfig()))
