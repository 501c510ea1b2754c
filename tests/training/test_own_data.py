"""A stage on a user's own files: bad records aside, to the end of the data, and on again."""

import json

import pytest

from bluelm_jax.training import defaults
from bluelm_jax.training import metrics
from bluelm_jax.training import record
from bluelm_jax.training import stage
from tests.bench import machine


def config(path, **changes):
  c = defaults.load(f"{machine.ROOT}/configs/stages/text.py:miniature")
  c.data.rows, c.data.length, c.steps, c.log_every, c.checkpoint_every = 8, 64, 50, 1, 100
  c.optimizer.name = "adamw"
  with c.unlocked():
    c.data.sources = {}
  defaults.fill(c.data.sources, mine=dict(kind="conversations", path=str(path), share=1.0, epochs=2))
  c.data.update(changes)
  return c


@pytest.fixture
def talks(tmp_path):
  lines = [json.dumps({"messages": [{"role": "user", "content": f"Say {i}."}, {"role": "assistant", "content": f"It is {i}!"}]}) for i in range(120)]
  lines[7] = lines[7][:-4]
  (tmp_path / "talks.jsonl").write_text("\n".join(lines))
  return tmp_path / "talks.jsonl"


def test_the_data_end_before_the_steps(talks, tmp_path):
  workdir = tmp_path / "w"
  with pytest.raises(ValueError, match="the data end after step ([0-9]+) of 50; raise the sources' epochs or caps, or set steps") as error:
    stage.run(config(talks), workdir)
  step = int(str(error.value).split()[5])
  assert 4 <= step < 50 and record.latest_step(workdir) == step
  lines = metrics.read(workdir)
  assert [x["step"] for x in lines] == list(range(1, step + 1)) and lines[-1]["epoch/mine"] == 2.0 and lines[-1]["bad/record"] == 2
  assert [json.loads(x)["index"] for x in (workdir / "quarantine.jsonl").read_text().splitlines()] == [7]
  assert all(x["loss/mine"] == x["loss"] for x in lines)
  assert lines[-1]["tokens/mine"] == pytest.approx(sum((1 - x["padding"]) * 8 * 64 for x in lines), rel=1e-4)
  with pytest.raises(ValueError, match=f"the data end after step {step} of 50"):
    stage.run(config(talks), workdir)  # begun again, it has nothing left


def test_counts_go_on_where_a_run_stopped(talks, tmp_path):
  found = []
  for name, stops in (("whole", ()), ("broken", (3,))):
    c = config(talks)
    c.steps, c.checkpoint_every = 5, 2
    for stop in (*stops, None):
      stage.run(c, tmp_path / name, stop)
    found.append([{k: v for k, v in x.items() if "second" not in k} for x in metrics.read(tmp_path / name)])
  assert found[0] == found[1] and len(found[0]) == 5


def test_no_record_may_be_bad(talks, tmp_path):
  with pytest.raises(ValueError, match=r"1 of [0-9]+ examples are bad \(1 record\), the last because .*talks.jsonl: record 7 is no JSON object"):
    stage.run(config(talks, max_bad_share=0.0), tmp_path / "w")
  with pytest.raises(ValueError, match="data.max_bad_share 2.0 must be from 0 to 1"):
    stage.run(config(talks, max_bad_share=2.0), tmp_path / "v")
