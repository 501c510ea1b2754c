"""The local runner: Beam's own, with workers forked from one process that has imported everything, for Beam takes seconds to import."""

import json
import subprocess
import sys

_URN = "bluelm_jax:env:forked:v1"


class _Forks:
  """The process that is forked; it ends with the last worker."""

  def __init__(self):
    self._process, self._workers = None, 0

  def prepare(self) -> None:
    if self._process is None:
      self._process = subprocess.Popen([sys.executable, "-m", "bluelm_jax.pipeline.worker"], stdin=subprocess.PIPE)

  def start(self, *arguments: str) -> None:
    self.prepare()
    self._process.stdin.write(json.dumps(arguments).encode() + b"\n")
    self._process.stdin.flush()
    self._workers += 1

  def stop(self) -> None:
    self._workers -= 1
    if not self._workers:
      self._process.communicate()
      self._process = None


_forks = _Forks()
prepare = _forks.prepare  # starts the importing; the sooner before `runner`, the less it is waited for


def runner():
  """A runner whose workers are processes of this machine."""
  from apache_beam.portability.api import endpoints_pb2
  from apache_beam.runners.portability.fn_api_runner import fn_runner
  from apache_beam.runners.portability.fn_api_runner import worker_handlers
  from apache_beam.transforms import environments
  from google.protobuf import json_format
  from google.protobuf import text_format

  @worker_handlers.WorkerHandler.register_environment(_URN, None)
  class Handler(worker_handlers.GrpcWorkerHandler):
    """Starts and ends a worker."""

    def __init__(self, payload, state, provision_info, grpc_server):
      del payload
      super().__init__(state, provision_info, grpc_server)

    def start_worker(self):
      options = json_format.MessageToJson(self.provision_info.provision_info.pipeline_options)
      control = text_format.MessageToString(endpoints_pb2.ApiServiceDescriptor(url=self.control_address))
      _forks.start(self.worker_id, control, options)

    def stop_worker(self):
      _forks.stop()

  @environments.Environment.register_urn(_URN, None)
  class Forked(environments.Environment):
    """What Beam's graph says of such workers."""

    def to_runner_api_parameter(self, context):
      return _URN, None

    @staticmethod
    def from_runner_api_parameter(payload, capabilities, artifacts, resource_hints, context):
      return Forked(capabilities, artifacts, resource_hints)

  prepare()
  return fn_runner.FnApiRunner(default_environment=Forked())
