"""Files of a stage."""

from bluelm_jax.data.sample import Sample
from bluelm_jax.pipeline import files


def test_some_samples_are_as_all_are(tmp_path):
  made = [Sample(f"made: {i}", "MIT", "text" * i, ({"role": "user", "content": [{"type": "image"}]},), (bytes([i]) * 70_000,), {"n": i}) for i in range(9)]
  path = str(tmp_path / "x.samples")
  files.write_samples(path, made)
  assert files.read_samples(path) == made
  assert files.read_some(path, {0, 4, 8}) == {i: made[i] for i in (0, 4, 8)} and files.read_some(path, ()) == {}
