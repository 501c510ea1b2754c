"""A mistake in flags or in a config file ends in one line and exit code 2."""

import pathlib
import sys

from absl import flags
from ml_collections import config_flags
import pytest

from bluelm_jax import door

ROOT = pathlib.Path(__file__).parents[1]
STAGE, RECIPE = f"{ROOT}/configs/stages/text.py", f"{ROOT}/configs/recipes/miniature.py"
HEAD = "from bluelm_jax.training import defaults\ndef get_config():\n  c = defaults.stage()\n"


def message(monkeypatch, capsys, *argv) -> str:
  values = flags.FlagValues()
  config_flags.DEFINE_config_file("config", None, "A config.", flag_values=values, sys_argv=["door", *argv])
  monkeypatch.setattr(flags, "FLAGS", values)
  monkeypatch.delitem(sys.modules, "config_config", raising=False)
  with pytest.raises(SystemExit) as leave:
    door._parse(["door", *argv])
    try:
      values.config.steps
    except OSError as e:
      door._leave(door._reason(e))
  text = capsys.readouterr().err
  assert leave.value.code == 2 and text.startswith("error: ") and text.count("\n") == 1 and len(text) < 240
  assert "\\" not in text and "Traceback" not in text
  return text


@pytest.mark.parametrize("flag,words", [
    ("stepz=3", "there is no key 'stepz' in the config; did you mean 'steps'?"), ("nope.x=1", "no key 'nope' in the config; see"),
    ("nope=1", "no key 'nope' in the config"), ("optimizer.lerning_rate=1", "no key 'lerning_rate' in the config; did you mean 'learning_rate'?"),
    ("data.sources.prose.shar=1", "did you mean 'share'?"), ("steps=abc", "--config.steps=abc: invalid literal"), ("mesh=3", "is not a dict"),
    ("steps.x=3", "steps.x")])
def test_flags(flag, words, monkeypatch, capsys):
  assert words in message(monkeypatch, capsys, f"--config={STAGE}", f"--config.{flag}")


@pytest.mark.parametrize("path,words", [
    (f"{ROOT}/README.md", "README.md, line"), (f"{RECIPE}:foo", "get_config() takes 0 positional arguments but 1 was given; mend what follows the colon"),
    ("/nowhere.py", "no config file at /nowhere.py"), (f"{ROOT}/configs", "no config file at"), ("", "--config is empty"),
    (f"{ROOT}/bluelm_jax/data/assets/text-test.array_record", "give a Python config file")])
def test_paths(path, words, monkeypatch, capsys):
  assert words in message(monkeypatch, capsys, f"--config={path}")


@pytest.mark.parametrize("text,words", [
    (HEAD + "  c.steps = = 3\n", "c.py, line 4: invalid syntax; give a Python config file"), (HEAD + "c.steps = 3\n", "c.py, line 4: NameError"),
    (HEAD + "  c.stepz = 3\n", "c.py, line 4: there is no key 'stepz' in the config; did you mean 'steps'?"),
    (HEAD + "  c['stepz'] = 3\n", "c.py, line 4: there is no key 'stepz'"), (HEAD + "  c.schedule.warm = 3\n", "c.py, line 4: there is no key 'warm'"),
    (HEAD + "  c.steps = 'a'\n", "c.py, line 4: TypeError: Could not override field 'steps'"), (HEAD + "  {}['huge']\n", "c.py, line 4: KeyError: huge"),
    (HEAD + "  raise ValueError('use small')\n", "error: use small"), (HEAD + "  open('/no/file')\n", "c.py, line 4: FileNotFoundError: /no/file"),
    ("import nothere\n", "c.py, line 1: ModuleNotFoundError"), ("x = 1\n", "has no get_config()"), ("def get_config():\n  return None\n", "NoneType")])
def test_files(text, words, tmp_path, monkeypatch, capsys):
  (tmp_path / "c.py").write_text(text)
  assert words in message(monkeypatch, capsys, f"--config={tmp_path}/c.py", *(["--config.steps=3"] if "None" in text else []))
