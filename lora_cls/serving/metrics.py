"""What `/metrics` shows, in the names of Prometheus."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class Metrics:
    """Counters of one server."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self._requests = Counter(
            "lora_cls_requests", "Requests by path and status.", ("path", "status"), registry=registry
        )
        self._seconds = Histogram(
            "lora_cls_request_seconds", "From a request to its answer.", ("path",), registry=registry, buckets=SECONDS
        )
        self._texts = Counter("lora_cls_texts", "Texts that were answered.", ("run",), registry=registry)
        self._labels = Counter("lora_cls_labels", "Labels that were given.", ("run", "label"), registry=registry)
        self._pass_texts = Histogram(
            "lora_cls_pass_texts", "Texts of a pass.", registry=registry, buckets=(1, 2, 4, 8, 16, 32, 64)
        )
        self._pass_requests = Histogram(
            "lora_cls_pass_requests", "Requests of a pass.", registry=registry, buckets=(1, 2, 4, 8, 16, 32, 64)
        )
        self._pass_seconds = Histogram(
            "lora_cls_pass_seconds", "A pass through all models of a run.", registry=registry, buckets=SECONDS
        )
        self.waiting = Gauge("lora_cls_waiting_requests", "Requests that wait for an answer.", registry=registry)

    def request(self, path: str, status: int, seconds: float) -> None:
        """A request was answered or refused."""
        self._requests.labels(path, str(status)).inc()
        self._seconds.labels(path).observe(seconds)

    def one_pass(self, rows: int, requests: int, seconds: float) -> None:
        """The models were asked."""
        self._pass_texts.observe(rows)
        self._pass_requests.observe(requests)
        self._pass_seconds.observe(seconds)

    def answered(self, run: str, label_names: Sequence[str], y_pred: np.ndarray) -> None:
        """What was decided, `y_pred` of shape (n_texts, n_labels)."""
        self._texts.labels(run).inc(len(y_pred))
        for name, count in zip(label_names, y_pred.sum(axis=0).tolist(), strict=True):
            if count:
                self._labels.labels(run, name).inc(count)

    def text(self) -> bytes:
        """In Prometheus' text format."""
        return generate_latest(self._registry)
