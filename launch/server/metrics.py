"""What Prometheus may ask: counters and histograms of requests, gauges of the engine."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from model.generate.engine import EngineStats

SECONDS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)
GAUGES = {
    "queued": "Requests that wait for a slot.",
    "active": "Requests that are being written, one slot each: the batch.",
    "slots": "Requests that can be written at the same time.",
    "cache_tokens": "Tokens in the cache of keys and values.",
    "cache_capacity": "Tokens that there is room for in the cache.",
}
COUNTERS = {
    "prefix_hits": "Tokens of prompts that were found in the cache of earlier ones.",
    "generated": "Tokens that the engine has written; its rate is tokens per second.",
}


class Metrics:
    """The metrics of one server, in a registry of their own."""

    def __init__(self, stats: Callable[[], EngineStats]) -> None:
        self._registry = registry = CollectorRegistry()
        self.requests = Counter(
            "seq2see_requests", "Answers, by path and status.", ("path", "status"), registry=registry
        )
        self.prompt_tokens = Counter("seq2see_prompt_tokens", "Tokens of prompts.", registry=registry)
        self.completion_tokens = Counter("seq2see_completion_tokens", "Tokens of answers.", registry=registry)
        self.first_token = Histogram(
            "seq2see_time_to_first_token_seconds", "From a request to its first token.",
            buckets=SECONDS, registry=registry,
        )  # fmt: skip
        self.duration = Histogram(
            "seq2see_request_seconds", "From a request to its last token.", buckets=SECONDS, registry=registry
        )
        registry.register(_Engine(stats))

    def text(self) -> bytes:
        """All of them in Prometheus' format."""
        return generate_latest(self._registry)


class _Engine(Collector):
    """The engine's own numbers, read when they are asked for."""

    def __init__(self, stats: Callable[[], EngineStats]) -> None:
        self._stats = stats

    def collect(self) -> Iterable[Metric]:
        """The gauges and counters."""
        stats = self._stats()
        for name, what in GAUGES.items():
            yield GaugeMetricFamily(f"seq2see_{name}", what, value=getattr(stats, name))
        for name, what in COUNTERS.items():
            yield CounterMetricFamily(f"seq2see_{name}", what, value=getattr(stats, name))
