"""Numbers about the server for Prometheus, in a registry of their own; requests are also counted in the log."""

import logging
import time

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from llada.serving.security import App, Message, Receive, Scope, Send
from llada.system.errors import shortened
from llada.system.terminal import visible

logger = logging.getLogger(__name__)

STEP_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)
REQUEST_SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300, 600)
BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)
METHODS = frozenset({"GET", "POST", "HEAD", "OPTIONS"})
LONGEST_PATH = 200


class Metrics:
    """The server's counters, gauges and histograms."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter(
            "llada_requests", "Requests, by endpoint and status.", ("endpoint", "status"), registry=registry
        )
        self.request_seconds = Histogram(
            "llada_request_seconds", "Time of a request, from its arrival to the end of its answer.", ("endpoint",),
            buckets=REQUEST_SECONDS, registry=registry,
        )  # fmt: skip
        self.waiting = Gauge("llada_queue_depth", "Texts that wait.", registry=registry)
        self.active = Gauge("llada_active_texts", "Texts that are being written.", registry=registry)
        self.tokens = Counter("llada_tokens", "Tokens written.", registry=registry)
        self.evaluations = Counter("llada_evaluations", "Evaluations of the network.", registry=registry)
        self.step_seconds = Histogram(
            "llada_step_seconds", "Time of a step of all texts that are being written.", buckets=STEP_SECONDS,
            registry=registry,
        )  # fmt: skip
        self.batch_size = Histogram(
            "llada_batch_size", "Texts that a step advances.", buckets=BATCH_SIZES, registry=registry
        )

    def stepped(self, n_texts: int, n_tokens: int, evaluations: int, seconds: float) -> None:
        """Count a step of the engine."""
        self.tokens.inc(n_tokens)
        self.evaluations.inc(evaluations)
        self.step_seconds.observe(seconds)
        self.batch_size.observe(n_texts)

    def counted(self, waiting: int, active: int) -> None:
        """Note how many texts wait and are being written."""
        self.waiting.set(waiting)
        self.active.set(active)

    def text(self) -> bytes:
        """Write all numbers in Prometheus' text format."""
        return generate_latest(self.registry)


class Counted:
    """Counts and logs each request, by the endpoint that answers it: a stranger's address is not a name of ours."""

    def __init__(self, app: App, metrics: Metrics, endpoints: frozenset[str]) -> None:
        self.app, self.metrics, self.endpoints = app, metrics, endpoints

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begun, status = time.perf_counter(), 499  # as nginx calls a client that left before the answer

        async def send_and_note(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, send_and_note)
        finally:
            self._note(scope, status, time.perf_counter() - begun)

    def _note(self, scope: Scope, status: int, seconds: float) -> None:
        path = scope["path"]
        endpoint = path if path in self.endpoints else "other"
        self.metrics.requests.labels(endpoint, str(status)).inc()
        self.metrics.request_seconds.labels(endpoint).observe(seconds)
        method = scope["method"] if scope["method"] in METHODS else "?"
        shown = visible(shortened(path, LONGEST_PATH)).replace("\n", "␊").replace("\t", "␉")
        logger.info("%s %s %d %.3f s", method, shown, status, seconds)
