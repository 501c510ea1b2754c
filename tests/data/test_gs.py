"""gs:// through Google's HTTP interface, as an emulator on this machine speaks it."""

import json
import logging

import fsspec
import pytest

from bluelm_jax.data import files
from bluelm_jax.data import formats
from bluelm_jax.data import sources
from bluelm_jax.pipeline import files as written
from tests.data import test_formats as local

gcsfs_core = pytest.importorskip("gcsfs.core")
server_lib = pytest.importorskip("gcp_storage_emulator.server")


@pytest.fixture(scope="module")
def bucket():
  with pytest.MonkeyPatch.context() as patch:
    server = server_lib.create_server("localhost", 0, in_memory=True, default_bucket="bucket")
    server.start()
    patch.setenv("STORAGE_EMULATOR_HOST", f"http://localhost:{server._api._httpd.server_port}")
    # Its other class asks over gRPC of what kind a bucket is.
    fsspec.register_implementation("gs", gcsfs_core.GCSFileSystem, clobber=True)
    files._filesystem.cache_clear()
    logging.getLogger("gcp_storage_emulator").setLevel(logging.CRITICAL)  # it reports what is looked for and not there
    yield "gs://bucket"
    server.stop()
    files._filesystem.cache_clear()
    gcsfs_core.GCSFileSystem.clear_instance_cache()


@pytest.mark.parametrize("kind", local.KINDS)
def test_formats(kind, bucket, tmp_path):
  with open(local.written(kind, tmp_path), "rb") as f:
    url = local.put(f"{bucket}/{kind[1:]}/x{kind}", f.read())
  for path in (url, f"{bucket}/{kind[1:]}/*{kind}", f"{bucket}/{kind[1:]}" if kind != ".json" else url):
    records = sources.Records(path)
    assert records.paths == [url] and [records[i].text for i in range(23)] == local.TEXTS


def test_a_huggingface_data_set(bucket):
  for name, rows in (("b.arrow", local.ROWS[:9]), ("a.arrow", local.ROWS[9:])):
    local.put(f"{bucket}/saved/{name}", local.arrow(rows))
  local.put(f"{bucket}/saved/state.json", json.dumps({"_data_files": [{"filename": "b.arrow"}, {"filename": "a.arrow"}]}).encode())
  records = sources.Records(f"{bucket}/saved")
  assert [records[i].text for i in range(23)] == local.TEXTS and records.paths[0] == f"{bucket}/saved/b.arrow"


def test_images_beside_the_file(bucket):
  local.put(f"{bucket}/pictures/a.png", local.picture())
  lines = [json.dumps({"text": "a <image> b", "images": [f"pictures/{name}.png"]}) for name in "ab"]
  records = sources.Records(local.put(f"{bucket}/x.jsonl", "\n".join(lines).encode()))
  assert records[0].images == (local.picture(),)
  with pytest.raises(ValueError, match=f"record 1 has its image at {bucket}/pictures/b.png, where none can be read"):
    records[1]


def test_what_is_not_there(bucket):
  for path in (f"{bucket}/none.jsonl", f"{bucket}/none/*.jsonl", "gs://nobody/x.jsonl"):
    with pytest.raises(ValueError, match="no data at"):
      sources.Records(path)


def test_the_pipeline_writes_there(bucket):
  written.write(f"{bucket}/out/a.jsonl", b'{"text": "a"}')
  written.write(f"{bucket}/out/a.jsonl", b'{"text": "b"}')
  assert written.read(f"{bucket}/out/a.jsonl") == b'{"text": "b"}' and written.exists(f"{bucket}/out/a.jsonl") and not written.exists(f"{bucket}/out/b")
  assert [formats.open_file(f"{bucket}/out/a.jsonl")[0]["text"], files.expand(f"{bucket}/out")] == ["b", [f"{bucket}/out/a.jsonl"]]
