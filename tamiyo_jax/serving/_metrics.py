"""What an operator sees of a server: `/healthz` and `/metrics` over HTTP."""

# The types of prometheus_client are partial.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import json
import threading
import time
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self

from tamiyo_jax.decision import Decision
from tamiyo_jax.errors import ConfigurationError, TamiyoError

__all__ = ["HttpEndpoint", "Metrics"]

_STALLED_S = 10.0
_REFUSALS = ("forged", "foreign", "replayed", "repeated", "oversized", "over_quota", "expired")


class Metrics:
    """Counts what a server does, and says whether it is well. Safe to share between threads.

    Needs ``tamiyo_jax[telemetry]``.

    Raises:
      ConfigurationError: prometheus_client is not installed.
    """

    def __init__(self) -> None:
        try:
            from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
        except ImportError as error:
            raise ConfigurationError(
                "a server needs prometheus_client; install tamiyo_jax[telemetry]"
            ) from error
        self.registry = CollectorRegistry()
        self._decisions = Counter(
            "tamiyo_server_answers", "Packets answered.", ("result",), registry=self.registry
        )
        self._refused = Counter(
            "tamiyo_server_refused", "Entries refused.", ("reason",), registry=self.registry
        )
        for reason in _REFUSALS:
            self._refused.labels(reason)
        self._fenced = Counter(
            "tamiyo_server_fenced", "Writes refused by Redis.", registry=self.registry
        )
        self._failures = Counter(
            "tamiyo_server_redis_failures", "Failures of Redis.", registry=self.registry
        )
        self._runs = Gauge("tamiyo_server_runs", "Runs owned.", registry=self.registry)
        self._batch = Histogram(
            "tamiyo_server_batch",
            "Packets decided together.",
            buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256),
            registry=self.registry,
        )
        self._seconds = Histogram(
            "tamiyo_server_decide_seconds", "Time of a batch.", registry=self.registry
        )
        self._reached = time.monotonic()
        self._draining = False

    def refuse(self, reason: str) -> None:
        """Count an entry that was refused."""
        self._refused.labels(reason).inc()

    def count_decisions(self, results: Sequence[Decision | TamiyoError], seconds: float) -> None:
        """Count decided packets, and errors by their name."""
        if results:
            self._batch.observe(len(results))
            self._seconds.observe(seconds)
        for result in results:
            name = "decision" if isinstance(result, Decision) else type(result).__name__
            self._decisions.labels(name).inc()

    def fence(self, count: int) -> None:
        """Count writes that Redis refused, because another server owns the run."""
        self._fenced.inc(count)

    def set_runs(self, count: int) -> None:
        """Note how many runs the server owns."""
        self._runs.set(count)

    def reach_redis(self) -> None:
        """Note that Redis has answered."""
        self._reached = time.monotonic()

    def lose_redis(self) -> None:
        """Count a failure of Redis."""
        self._failures.inc()

    def drain(self) -> None:
        """Note that the server is ending."""
        self._draining = True

    def health(self) -> tuple[bool, dict[str, object]]:
        """Whether all is well, and why."""
        silent_s = time.monotonic() - self._reached
        status = "draining" if self._draining else "ok"
        if not self._draining and silent_s > _STALLED_S:
            status = "stalled"
        return status == "ok", {"status": status, "seconds_since_redis": round(silent_s, 3)}


class HttpEndpoint:
    """Serves `/healthz` and `/metrics` from threads of its own; a context manager.

    Args:
      metrics: what to serve.
      host: address to listen on.
      port: port; 0 takes any that is free.

    Raises:
      OSError: the port is taken.
    """

    def __init__(self, metrics: Metrics, host: str, port: int) -> None:
        from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if self.path == "/healthz":
                    well, about = metrics.health()
                    self._reply(200 if well else 503, "application/json", json.dumps(about))
                elif self.path == "/metrics":
                    text = generate_latest(metrics.registry).decode()
                    self._reply(200, CONTENT_TYPE_LATEST, text)
                else:
                    self._reply(404, "text/plain", "ask for /healthz or /metrics\n")

            def _reply(self, status: int, kind: str, text: str) -> None:
                body = text.encode()
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                """Say nothing; the figures are in `/metrics`."""

        self._server = ThreadingHTTPServer((host, port), Handler)
        self.port = self._server.server_port
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
