"""Reasoning data from our own server, a process on the loopback whose small model says anything: every path arrives and is counted."""

import json
import re
import subprocess
import sys
import threading

import pytest

pytest.importorskip("apache_beam")
pytest.importorskip("math_verify")
pytest.importorskip("uvicorn")

from bluelm_jax.pipeline import run
from bluelm_jax.pipeline.reasoning import endpoint
from tests.inference.server import checkpoint
from tests.pipeline.test_prepare import ONE
from tests.pipeline.test_reasoning import ROOT
from tests.pipeline.test_reasoning import config

SAMPLES, AT_ONCE, ROOM = 3, 6, 2


@pytest.fixture
def port(tmp_path):
  """A server that sends away all but ROOM requests at a time."""
  checkpoint.write(tmp_path / "model")
  command = [sys.executable, "-m", "bluelm_jax.serve", f"--checkpoint={tmp_path / 'model'}", "--port=0", "--name=mine", "--slots=4", f"--limit_requests={ROOM}"]
  process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
  try:
    yield int(re.fullmatch(r"serving mine at http://127.0.0.1:(\d+)\n", process.stderr.readline())[1])
  finally:
    process.kill()
    process.communicate()


class Counted(endpoint.requests.Session):
  """Counts what is under way at once, and how requests end."""

  lock, under_way, most, statuses = threading.Lock(), 0, 0, []

  def post(self, *args, **kwargs):
    with self.lock:
      Counted.under_way += 1
      Counted.most = max(Counted.most, Counted.under_way)
    try:
      response = super().post(*args, **kwargs)
    finally:
      with self.lock:
        Counted.under_way -= 1
    with self.lock:
      self.statuses.append(response.status_code)
    return response


def test_every_path_arrives_though_most_requests_are_sent_away(port, tmp_path, monkeypatch):
  monkeypatch.setattr(endpoint.requests, "Session", Counted)
  Counted.most, Counted.statuses = 0, []
  c = config()
  c.sources.tasks.count, c.block_bytes = 3, 10**6
  c.reasoning.rewrite, c.reasoning.samples = (), SAMPLES
  c.reasoning.generator.update(dict(function="", base_url=f"http://127.0.0.1:{port}/v1", model="mine", concurrency=AT_ONCE, max_tokens=8, retries=60, backoff=0.02))
  with pytest.raises(ValueError, match="no document is left"):  # nothing that such a model says is right
    run.run(c, str(tmp_path / "out"), ONE)
  count = lambda stage: [json.loads(p.read_text()) for p in (tmp_path / "out" / "stages" / stage).glob("0*.json")]
  questions = sum(found["kept"] for found in count("rewrite"))
  assert questions > AT_ONCE and sum(found["documents"] for found in count("sample")) == SAMPLES * questions
  for found in count("judge"):
    assert found["kept"] == 0 and sum(n for n, _ in found["removed"].values()) == found["documents"] == SAMPLES * sum(kind["questions"] for kind in found["kinds"].values())
  answers = [json.loads(p.read_text()) for p in (tmp_path / "out" / "answers").glob("*/*.json")]
  assert [len(some) for some in answers] == [SAMPLES] * questions
  assert ROOM < Counted.most <= AT_ONCE and set(Counted.statuses) == {200, 429} and Counted.statuses.count(200) == questions
