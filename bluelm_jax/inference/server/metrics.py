"""What /metrics tells Prometheus."""

import functools

import prometheus_client as prometheus

_FIRST = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_BETWEEN = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0)
_COUNTERS = ("prefix_tokens", "preemptions", "steps", "tiles_encoded")  # of the engine's stats; the others are gauges


class Metrics:
  """Counters of one server; the engine's own figures are read when somebody asks."""

  def __init__(self):
    self._registry = registry = prometheus.CollectorRegistry()
    count = functools.partial(prometheus.Counter, registry=registry)
    times = functools.partial(prometheus.Histogram, registry=registry)
    self.requests = count("bluelm_requests", "Requests by path and HTTP status; 499 where the client left.", ["path", "status"])
    self.tokens_in = count("bluelm_prompt_tokens", "Tokens of prompts.")
    self.tokens_out = count("bluelm_generation_tokens", "Tokens generated.")
    self.first = times("bluelm_time_to_first_token_seconds", "From a request's last byte.", buckets=_FIRST)
    self.between = times("bluelm_time_between_tokens_seconds", "Of one sample.", buckets=_BETWEEN)
    self.in_flight = prometheus.Gauge("bluelm_requests_in_flight", "Accepted and not yet ended.", registry=registry)
    self.type = prometheus.CONTENT_TYPE_LATEST

  def text(self, stats: dict) -> bytes:
    """All of it, with the engine's figures behind."""
    lines = []
    for name, value in stats.items():
      counts = name in _COUNTERS
      full = f"bluelm_engine_{name}" + "_total" * counts
      lines += [f"# TYPE {full} {'counter' if counts else 'gauge'}", f"{full} {value}"]
    return prometheus.generate_latest(self._registry) + "\n".join([*lines, ""]).encode()


class Counted:
  """ASGI middleware that counts requests."""

  def __init__(self, app, metrics: Metrics, paths: frozenset[str]):
    """`paths`: that are counted by name; others are one."""
    self._app, self._metrics, self._paths = app, metrics, paths

  async def __call__(self, scope, receive, send):
    if scope["type"] != "http":
      return await self._app(scope, receive, send)
    path, status = scope["path"] if scope["path"] in self._paths else "other", "499"

    async def counting(message):
      nonlocal status
      if message["type"] == "http.response.start":
        status = str(message["status"])
      await send(message)

    try:
      await self._app(scope, receive, counting)
    finally:
      self._metrics.requests.labels(path, "499" if scope.get("bluelm.left") else status).inc()
