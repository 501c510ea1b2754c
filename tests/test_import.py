"""Importing the package is light."""

import pathlib
import subprocess
import sys


def test_import_touches_no_device():
  code = (
      "import sys, bluelm_jax\n"
      "assert 'jax' not in sys.modules and 'flax' not in sys.modules and 'torch' not in sys.modules\n"
      "assert callable(bluelm_jax.load_pretrained)\n"
      "import jax._src.xla_bridge as b\nassert not b._backends, 'a backend was started'\n")
  out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
  assert out.returncode == 0, out.stderr


def test_no_torch_at_run_time():
  for path in (pathlib.Path(__file__).parents[1] / "bluelm_jax").rglob("*.py"):
    assert "import torch" not in path.read_text() and "import transformers" not in path.read_text(), path
