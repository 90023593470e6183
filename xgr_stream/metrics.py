"""What an operator watches, as Prometheus metrics in a registry of their own.

User ids and item ids never become labels.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from itertools import accumulate

from prometheus_client import CollectorRegistry, Counter, Gauge
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

STAGES = ("wait", "append", "decode", "publish", "total")
_STAGE_BUCKETS_S = (
    *(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.02, 0.035, 0.05, 0.075, 0.1),
    *(0.15, 0.2, 0.35, 0.5, 0.75, 1.0, 2.5, 5.0, 10.0),
)


class StageSeconds(Collector):
    """A histogram for each stage. prometheus-client's own takes 3 µs an observation, for locks and checks that one
    thread alone does not need, and an answer has five. Observed on one thread; may be collected on any."""

    def __init__(self) -> None:
        self._counts: dict[str, list[int]] = {}
        self._sums: dict[str, float] = {}
        for stage in STAGES:
            self._add(stage)

    def observe(self, stage: str, seconds: float) -> None:
        if stage not in self._counts:
            self._add(stage)
        self._counts[stage][bisect_left(_STAGE_BUCKETS_S, seconds)] += 1
        self._sums[stage] += seconds

    def collect(self) -> Iterator[HistogramMetricFamily]:
        family = HistogramMetricFamily(
            "xgr_stage_seconds",
            "Time that requests spent in each stage; total counts from the request record's timestamp.",
            labels=["stage"],
        )
        bounds = [*map(floatToGoString, _STAGE_BUCKETS_S), "+Inf"]
        for stage, counts in list(self._counts.items()):
            family.add_metric([stage], list(zip(bounds, accumulate(counts), strict=True)), self._sums[stage])
        yield family

    def _add(self, stage: str) -> None:
        self._sums[stage] = 0.0
        self._counts[stage] = [0] * (len(_STAGE_BUCKETS_S) + 1)


class Metrics:
    """The metrics of one recommender. Each attribute is a prometheus-client object; safe to use on any thread."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = registry or CollectorRegistry()
        self.events = self._counter("events", "Events that were added to a history.")
        self.events_replayed = self._counter(
            "events_replayed", "Events read again whose offset the history already included; they changed nothing."
        )
        self.events_unknown_item = self._counter(
            "events_unknown_item", "Events whose item the catalog does not know; kept, without tokens."
        )
        self.users_forgotten = self._counter("users_forgotten", "Users forgotten by a null value on their key.")
        self.events_behind = self._gauge(
            "events_behind", "Offsets between the end of the events topic and what was processed of it.", "partition"
        )
        self.appends = self._counter("appends", "User prefixes brought up to date before anybody asked.")
        self.append_tokens = self._counter("append_tokens", "Tokens appended or prefilled for them.")
        self.requests = self._counter(
            "requests", "Requests answered, by outcome (status or error code) and cache state.", "outcome", "cache"
        )
        self._stages = StageSeconds()
        self.registry.register(self._stages)
        self.appends_shed = self._counter(
            "appends_shed",
            "Appends left to the user's next request, since requests needed the device or the queue was full.",
        )
        self.requests_dropped = self._counter(
            "requests_dropped", "Requests that left the queue before their decode: expired or cancelled.", "reason"
        )
        self.out_of_memory = self._counter(
            "out_of_memory", "Batches and appends that the device had no memory for; each was cut or refused."
        )
        self.users_warm = self._gauge("users_warm", "Users whose prefix is resident.")
        self.cache_bytes = self._gauge("cache_bytes", "Prefix cache, used and budget.", "kind")
        self.beams_dead = self._counter(
            "beams_dead", "Beams left unfilled: the filters, or a small catalog, had fewer legal items than the beam."
        )
        self.invalid_items = self._counter("invalid_items", "Items answered that were not legal; always 0.")
        self.queue_depth = self._gauge("queue_depth", "Work waiting for the device.", "queue")
        self.unpublished = self._gauge(
            "unpublished", "Records that are to be written and not durable yet, by what they are.", "kind"
        )
        self.resting_partitions = self._gauge(
            "resting_partitions", "Partitions that are not read for now, so that what is taken stays bounded.", "topic"
        )
        self.dead_letters = self._counter("dead_letters", "Records sent to the dead letter topic.", "reason")
        self.misplaced_records = self._counter(
            "misplaced_records", "Records whose partition is not that of their key.", "topic"
        )
        self.reply_copies_failed = self._counter(
            "reply_copies_failed", "Copies of responses that a request's reply_to topic did not take."
        )
        self.transactions = self._counter(
            "transactions",
            "Transactions, by how they ended: committed, aborted, fenced (another worker took over).",
            "outcome",
        )
        self.history_users = self._gauge("history_users", "Users with a history here.")
        self.history_bytes = self._gauge("history_bytes", "Memory of the histories.")
        self.snapshots_written = self._counter("snapshots_written", "Snapshots of a partition's history written.")
        self.snapshots_failed = self._counter("snapshots_failed", "Snapshots that could not be written.")
        self.snapshots_ignored = self._counter(
            "snapshots_ignored", "Snapshots that were not used; everything was read from the changelog.", "reason"
        )
        self.standby_partitions = self._gauge("standby_partitions", "Other workers' partitions with a copy here.")
        self._outcomes: dict[tuple[str, str], Counter] = {}
        for reason in ("expired", "cancelled"):
            self.requests_dropped.labels(reason)

    def observe_stage(self, stage: str, seconds: float) -> None:
        """A request spent so long in a stage. Called on one thread, the event loop's."""
        self._stages.observe(stage, seconds)

    def count_request(self, outcome: str, cache: str) -> None:
        """A request was answered."""
        # Looked up once: it takes 2 µs each time.
        child = self._outcomes.get((outcome, cache))
        if child is None:
            child = self._outcomes[outcome, cache] = self.requests.labels(outcome, cache)
        child.inc()

    def _counter(self, name: str, description: str, *labels: str) -> Counter:
        return Counter(f"xgr_{name}", description, labels, registry=self.registry)

    def _gauge(self, name: str, description: str, *labels: str) -> Gauge:
        return Gauge(f"xgr_{name}", description, labels, registry=self.registry)
