"""What was served, for Prometheus. Names and meanings are vLLM's where it has them, so its dashboards work here."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

from llmctl.serve.backend import Backend

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

# Seconds. Wide enough for a laptop's CPU and fine enough for one accelerator.
FIRST_TOKEN_BUCKETS = (0.001, 0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.25, 2.5, 5, 10, 20, 40, 80)
BETWEEN_TOKENS_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
WHOLE_REQUEST_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320)


class _EngineCounts(Collector):
    """What the engine counts itself, read when it is asked for."""

    def __init__(self, engine: Backend, model_name: str) -> None:
        self._engine = engine
        self._model = model_name

    def collect(self) -> Iterator[CounterMetricFamily]:
        """One family for each of the engine's counts."""
        counts = self._engine.counts
        for name, text, value in (
            ("vllm:prefix_cache_queries", "Prompt tokens looked up in the cache.", counts.prefix_queries),
            ("vllm:prefix_cache_hits", "Prompt tokens found in the cache.", counts.prefix_hits),
            ("vllm:num_preemptions", "Sequences that gave up their blocks to others.", counts.preemptions),
            ("vllm:spec_decode_num_draft_tokens", "Tokens guessed ahead.", counts.drafted),
            ("vllm:spec_decode_num_accepted_tokens", "Guessed tokens that were right.", counts.accepted),
        ):
            family = CounterMetricFamily(name, text, labels=["model_name"])
            family.add_metric([self._model], value)
            yield family


class Metrics:
    """The counters of one server, in a registry of their own (two servers in one process do not mix)."""

    def __init__(self, engine: Backend, model_name: str) -> None:
        self.registry = CollectorRegistry()
        self._model = model_name

        def gauge(name: str, text: str) -> Gauge:
            return Gauge(name, text, ["model_name"], registry=self.registry).labels(model_name)

        def counter(name: str, text: str) -> Counter:
            return Counter(name, text, ["model_name"], registry=self.registry).labels(model_name)

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(name, text, ["model_name"], registry=self.registry, buckets=buckets).labels(model_name)

        gauge("vllm:num_requests_running", "Sequences that are being generated.").set_function(lambda: engine.running)
        gauge("vllm:num_requests_waiting", "Sequences that wait for a place.").set_function(lambda: engine.waiting)
        gauge("vllm:kv_cache_usage_perc", "Share of the KV cache in use, 0 to 1.").set_function(
            lambda: engine.cache_usage
        )
        self.registry.register(_EngineCounts(engine, model_name))
        self.prompt_tokens = counter("vllm:prompt_tokens", "Prompt tokens processed.")
        self.generation_tokens = counter("vllm:generation_tokens", "Tokens generated.")
        self.first_token = histogram(
            "vllm:time_to_first_token_seconds", "From arrival to the first token of a sequence.", FIRST_TOKEN_BUCKETS
        )
        self.between_tokens = histogram(
            "vllm:inter_token_latency_seconds", "Between one token of a sequence and the next.", BETWEEN_TOKENS_BUCKETS
        )
        self.whole_request = histogram(
            "vllm:e2e_request_latency_seconds", "From arrival to the last token of a sequence.", WHOLE_REQUEST_BUCKETS
        )
        self._finished = Counter(
            "vllm:request_success",
            "Sequences that ended, by reason; `abort` are those whose client left.",
            ["finished_reason", "model_name"],
            registry=self.registry,
        )
        self._responses = Counter(
            "llmctl:http_responses", "Responses by route and status.", ["route", "status"], registry=self.registry
        )

    def finished(self, reason: str) -> None:
        """Count one ended sequence: `stop`, `length`, `abort` or `error`."""
        self._finished.labels(reason, self._model).inc()

    def responded(self, route: str, status: int) -> None:
        """Count one HTTP response. `route` is a declared route or `other`, so clients cannot grow the label set."""
        self._responses.labels(route, str(status)).inc()

    def render(self) -> bytes:
        """The text exposition format."""
        return generate_latest(self.registry)
