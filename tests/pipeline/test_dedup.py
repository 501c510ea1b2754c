"""Copies of texts and images, and what stands in evaluation sets."""

import itertools

import cv2
import numpy as np
import pytest

pytest.importorskip("rensa")

from bluelm_jax.pipeline import decontaminate
from bluelm_jax.pipeline import dedup
from bluelm_jax.pipeline import tokens


def text(rng, words=200):
  return " ".join(f"w{i}" for i in rng.integers(0, 5000, words))


def jaccard(a, b):
  sets = [set(zip(*(t.split()[i:] for i in range(dedup.SHINGLE)))) for t in (a, b)]
  return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


def found_pairs(texts, least=0.7):
  signatures = dedup.signatures(tokens.words(texts))
  pairs = np.unique(np.concatenate([dedup.pairs(dedup.band_keys(signatures, b)) for b in range(dedup.BANDS)]), axis=0)
  low = signatures.astype(np.uint8)
  return {tuple(p) for p in pairs[dedup.similarity(low[pairs[:, 0]], low[pairs[:, 1]]) >= least].tolist()}


def test_keys_ignore_case_spaces_and_signs_alone():
  a, b, c, d, e = tokens.keys(tokens.words(["Click the button, please.", "click  THE button\nplease", "click button the please", "click the button", ""]))
  assert a == b and len({a, c, d, e}) == 4


def test_keys_do_not_depend_on_the_batch():
  texts = ["one two three", "四五六", "seven", *(text(np.random.default_rng(i)) for i in range(9))]
  together = tokens.keys(tokens.words(texts))
  assert [tokens.keys(tokens.words([t]))[0] for t in texts] == together.tolist()
  grams, starts = tokens.ngrams(tokens.words(texts), 2)
  assert starts.tolist()[:4] == [0, 2, 4, 4] and grams[:2].tolist() == tokens.ngrams(tokens.words(texts[:1]), 2)[0].tolist()


def test_taking_texts_is_reading_them_alone():
  texts = ["one two three", "四五六 a", "", "seven"]
  for some, alone in zip(tokens.take(tokens.words(texts), np.array([3, 1])), tokens.words([texts[3], texts[1]])):
    np.testing.assert_array_equal(some, alone)


def test_the_estimate_is_the_similarity():
  rng = np.random.default_rng(0)
  pairs = []
  for share in (0.01, 0.03, 0.1, 0.2, 1.0):
    for _ in range(30):
      words = text(rng, 300).split()
      other = [f"x{i}" if rng.random() < share else w for i, w in enumerate(words)]
      pairs.append((" ".join(words), " ".join(other)))
  signatures = dedup.signatures(tokens.words([t for pair in pairs for t in pair]))
  low = signatures.astype(np.uint8)
  errors = dedup.similarity(low[::2], low[1::2]) - np.array([jaccard(*pair) for pair in pairs])
  assert abs(errors.mean()) < 0.01 and errors.std() < 0.045  # sqrt(0.25 / 128) = 0.044 at most


def test_near_copies_are_found_and_others_are_not():
  rng = np.random.default_rng(1)
  base = [text(rng) for _ in range(300)]
  near = [t + " " + text(rng, 8) for t in base[:100]]  # similarity 0.96
  far = [" ".join(t.split()[:100]) + " " + text(rng, 100) for t in base[100:200]]  # 0.32
  assert min(map(jaccard, base, near)) > 0.9 and max(map(jaccard, base[100:200], far)) < 0.4
  assert found_pairs(base + near + far) == {(i, 300 + i) for i in range(100)}


def test_chinese_near_copies_are_found():
  rng = np.random.default_rng(2)
  base = ["".join(map(chr, rng.integers(0x4E00, 0x9FA5, 200))) for _ in range(20)]
  assert found_pairs(base + [t + "末尾多一句话。" for t in base]) == {(i, 20 + i) for i in range(20)}


def test_texts_too_short_for_shingles_are_no_copies_of_each_other():
  """Their signatures are equal, so `near` in clean.compare leaves them out."""
  signatures = dedup.signatures(tokens.words(["one two", "three"]))
  assert signatures.shape == (2, dedup.PERMUTATIONS) and dedup.signatures(tokens.words([])).shape == (0, dedup.PERMUTATIONS)


def test_a_chain_is_one_cluster_and_its_longest_stays():
  ids = np.array([3, 10, 11, 40, 41, 90], np.uint64)
  edges = np.array([[3, 10], [10, 90], [40, 41]], np.uint64)
  label = dedup.clusters(ids, edges)
  assert label[0] == label[1] == label[5] and label[3] == label[4] and len(set(label)) == 3
  assert dedup.copies(ids, edges, np.array([5, 7, 1, 4, 4, 7])).tolist() == [3, 41, 90]  # the longest of each, the first of equals


def test_pairs_chain_every_group():
  keys = np.array([5, 9, 5, 5, 9, 1], np.uint64)
  assert dedup.pairs(keys).tolist() == [[0, 2], [0, 3], [1, 4], [2, 3]]
  assert sorted(map(tuple, dedup.all_pairs(keys).tolist())) == [(0, 2), (0, 3), (1, 4), (2, 3)]
  assert dedup.pairs(keys[:0]).shape == dedup.all_pairs(keys[:0]).shape == (0, 2)


def picture(seed):
  rng = np.random.default_rng(seed)
  image = np.full((240, 320, 3), 255, np.uint8)
  for _ in range(12):
    x, y, w, h = rng.integers(0, 250, 4)
    cv2.rectangle(image, (int(x), int(y)), (int(x + w // 2 + 5), int(y + h // 2 + 5)), rng.integers(0, 255, 3).tolist(), -1)
  return image


def png(image):
  return cv2.imencode(".png", image)[1].tobytes()


def test_an_image_scaled_or_pressed_is_the_same_and_another_is_not():
  hashes = []
  for seed in range(30):
    image = picture(seed)
    variants = [png(image), png(cv2.resize(image, (200, 150), interpolation=cv2.INTER_AREA)), cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 60])[1].tobytes()]
    hashes.append([np.uint64(dedup.image_hash(v)) for v in variants])
  assert max(int(dedup.distance(h[0], other)) for h in hashes for other in h[1:]) <= decontaminate.IMAGE_BITS
  assert min(int(dedup.distance(a[0], b[0])) for a, b in itertools.combinations(hashes, 2)) > decontaminate.IMAGE_BITS
  with pytest.raises(ValueError):
    dedup.image_hash(b"no image")


@pytest.mark.parametrize("item, text, wanted", [
    ("a b c d e f g h i j k l m n o", "x y a b c d e f g h i j k l m z", True), ("a b c d e f g h i j k l m n o", "x a b c d e f g h i j k l z n", False),
    ("one two three four five six seven eight", "so one two three four five six seven eight then", True), ("one two three", "one two three", False),
    ("这是一道用来测试模型是否记住了题目的很长的中文问题", "请看：这是一道用来测试模型是否记住了题目的很长的中文问题，答案是三。", True),
    ("这是一道用来测试模型是否记住了题目的很长的中文问题", "请看：这是一道用来测试模型的很长的中文问题，是否记住了题目？", False)])
def test_contamination(item, text, wanted):
  found = decontaminate.tables([item, "another item of the set that is long enough to make its own table of words, yes"])
  assert decontaminate.contaminated(tokens.words(["nothing to see", text, "nor here"]), found).tolist() == [False, wanted, False]


def test_contaminated_images():
  found = decontaminate.tables([], [png(picture(1))])
  same, other = dedup.image_hash(png(cv2.resize(picture(1), (160, 120), interpolation=cv2.INTER_AREA))), dedup.image_hash(png(picture(2)))
  assert decontaminate.image_contaminated([other, same], found) and not decontaminate.image_contaminated([other], found)
  assert not decontaminate.image_contaminated([other], decontaminate.tables([]))
