"""Metrics of the service, in Prometheus' format."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

#: Upper bounds of the histogram of seconds.
SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100)


class Metrics:
    """Counters of one application.

    Args:
        waiting: returns the number of photos that wait.
        held: returns the bytes of photos that are received or wait.
    """

    content_type = CONTENT_TYPE_PLAIN_0_0_4

    def __init__(self, waiting: Callable[[], int], held: Callable[[], int]) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        labels = ("route", "status")
        self._requests = Counter(
            "jzi_requests", "Requests answered; 499: the client had gone.", labels, registry=registry
        )
        self._seconds = Histogram(
            "jzi_request_seconds", "Seconds per request.", ("route",), buckets=SECONDS, registry=registry
        )
        self.batches = Histogram(
            "jzi_batch_photos", "Photos encoded together.", buckets=(1, 2, 4, 8, 16, 32), registry=registry
        )
        self.waited = Histogram("jzi_queue_seconds", "Seconds that photos waited.", buckets=SECONDS, registry=registry)
        Gauge("jzi_queue_photos", "Photos that wait.", registry=registry).set_function(waiting)
        Gauge("jzi_upload_bytes", "Bytes of photos received or waiting.", registry=registry).set_function(held)

    def observe(self, route: str, status: int, seconds: float) -> None:
        """Count a request.

        Args:
            route: its route, not its path.
            status: of the response.
            seconds: from its headers to the end of its response.
        """
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def text(self) -> bytes:
        """The metrics."""
        return generate_latest(self.registry)
