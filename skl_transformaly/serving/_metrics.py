"""Metrics of a server, in the format of Prometheus."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, ProcessCollector, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

__all__ = ["Metrics"]

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_P_VALUES = (0.001, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 1)


class Metrics:
    """Metrics of one server, separate from others in the process.

    `about` has the labels of ``transformaly_model_info``; ``pending()`` is the number of waiting images.
    """

    content_type = CONTENT_TYPE_LATEST

    def __init__(self, about: Mapping[str, str], pending: Callable[[], int]):
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self.requests = Counter("transformaly_requests", "Answered requests.", ["path", "status"], registry=registry)
        self.in_progress = Gauge(
            "transformaly_requests_in_progress", "Requests being read or answered.", registry=registry
        )
        self.seconds = Histogram(
            "transformaly_request_seconds", "From the first byte of a request's body to its answer.",
            registry=registry, buckets=_SECONDS,
        )  # fmt: skip
        self.refused = Counter("transformaly_refused", "Refused requests, by reason.", ["reason"], registry=registry)
        self.images = Counter("transformaly_images", "Answered images, by decision.", ["decision"], registry=registry)
        self.p_values = Histogram(
            "transformaly_p_value", "p-values; of normal images, 5 % are below 0.05.",
            registry=registry, buckets=_P_VALUES,
        )  # fmt: skip
        self.batch = Histogram(
            "transformaly_batch_images", "Images scored at a time.",
            registry=registry, buckets=(1, 2, 4, 8, 16, 32, 64),
        )  # fmt: skip
        self.batch_seconds = Histogram(
            "transformaly_batch_seconds", "Time to score a batch.", registry=registry, buckets=_SECONDS
        )
        Gauge("transformaly_queue_images", "Images without a score yet.", registry=registry).set_function(pending)
        Info("transformaly_model", "The model, by its labels.", registry=registry).info(dict(about))

    def observe_batch(self, n_images: int, seconds: float) -> None:
        """Count a batch."""
        self.batch.observe(n_images)
        self.batch_seconds.observe(seconds)

    def text(self) -> bytes:
        """Return the metrics in the format of Prometheus."""
        return generate_latest(self.registry)
