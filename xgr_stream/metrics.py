"""What an operator watches, as Prometheus metrics in a registry of their own.

User ids and item ids never become labels.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any, Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.metrics_core import HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from xgr_stream.types import RecommendResponse

STAGES = ("wait", "append", "decode", "publish", "total")
_STAGE_BUCKETS_S = (
    *(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.02, 0.035, 0.05, 0.075, 0.1),
    *(0.15, 0.2, 0.35, 0.5, 0.75, 1.0, 2.5, 5.0, 10.0),
)

_OVERLAP_BUCKETS = tuple(n / 10 for n in range(11))
_MERGE_BUCKETS_S = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class CacheStats(Protocol):
    """The part of an engine's state that is told by version."""

    @property
    def users_warm(self) -> int: ...
    @property
    def bytes_used(self) -> int: ...
    @property
    def bytes_budget(self) -> int: ...


class Durations(Collector):
    """A histogram of seconds with one label, observed on one thread and read on any. prometheus-client's own takes a
    lock or two and a walk through the buckets: 2 µs, and each request needs five."""

    _type = "histogram"  # as prometheus-client's have it, for whoever asks all metrics what they are

    def __init__(
        self, name: str, description: str, label: str, buckets_s: Sequence[float], registry: CollectorRegistry
    ) -> None:
        self._name, self._description, self._labelnames = name, description, (label,)
        self._bounds = tuple(buckets_s)
        self._counts: dict[str, list[int]] = {}
        """By label: observations in each bucket, and in a last one beyond the bounds."""
        self._sums: dict[str, float] = {}
        registry.register(self)

    def label(self, value: str) -> None:
        """Have this value of the label shown before anything was observed."""
        self._counts[value] = [0] * (len(self._bounds) + 1)
        self._sums[value] = 0.0

    def observe(self, value: str, seconds: float) -> None:
        counts = self._counts.get(value)
        if counts is None:
            self.label(value)
            counts = self._counts[value]
        counts[bisect_left(self._bounds, seconds)] += 1
        self._sums[value] += seconds

    def collect(self) -> Iterator[HistogramMetricFamily]:
        family = HistogramMetricFamily(self._name, self._description, labels=self._labelnames)
        names = [*map(floatToGoString, self._bounds), "+Inf"]
        for value, counts in list(self._counts.items()):
            family.add_metric([value], list(zip(names, accumulate(counts), strict=True)), self._sums[value])
        yield family


class Metrics:
    """The metrics of one recommender. Each attribute is a prometheus-client object and safe to use on any
    thread, but for `stage_seconds`, which is the loop's."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = registry or CollectorRegistry()
        self.events = self._counter("events", "Events that were added to a history.")
        self.events_replayed = self._counter(
            "events_replayed",
            "Events and copies that came again, which a history already included; they changed nothing.",
        )
        self.events_unknown_item = self._counter(
            "events_unknown_item", "Events whose item the catalog does not know; kept, without tokens."
        )
        self.users_forgotten = self._counter("users_forgotten", "Users forgotten by a null value on their key.")
        self.events_behind = self._gauge(
            "events_behind", "Offsets between the end of the events topic and what was processed of it.", "partition"
        )
        self.source_behind = self._gauge(
            "source_behind",
            "Offsets between the end of a topic to copy events from and what was copied.",
            "topic",
        )
        self.appends = self._counter("appends", "User prefixes that took work to be up to date before anybody asked.")
        self.append_tokens = self._counter("append_tokens", "Tokens appended or prefilled for them.")
        self.append_batches = self._counter(
            "append_batches", "Batches of them that the device was given; of a prefill in chunks, each chunk."
        )
        self.requests = self._counter(
            "requests", "Requests answered, by outcome (status or error code) and cache state.", "outcome", "cache"
        )
        self.stage_seconds = Durations(
            "xgr_stage_seconds",
            "Time that requests spent in each stage; total counts from the request record's timestamp.",
            "stage",
            _STAGE_BUCKETS_S,
            self.registry,
        )
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
        self.tier_users = self._gauge("tier_users", "Users whose prefix is in this tier and not on the device.", "tier")
        self.tier_bytes = self._gauge("tier_bytes", "Memory behind the prefix cache, used and budget.", "tier", "kind")
        self.tier_moves = self._counter(
            "tier_moves", "Prefixes copied to host memory (out) and back to the device (in).", "direction"
        )
        self.tier_moved_bytes = self._counter("tier_moved_bytes", "Bytes of these copies.", "direction")
        self.tier_move_seconds = self._counter("tier_move_seconds", "Time of these copies.", "direction")
        self.tier_recomputed = self._counter(
            "tier_recomputed", "Prefixes computed anew though host memory had a copy, since that is faster."
        )
        self.tier_dropped = self._counter("tier_dropped", "Copies that had to go from host memory, to nowhere.")
        self.tier_file_copies = self._counter(
            "tier_file_copies", "Copies written to the file (out) and read back to host memory (in).", "direction"
        )
        self.tier_file_failures = self._counter(
            "tier_file_failures", "Copies lost to errors of the file; their users are computed anew."
        )
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
        self.catalog_updates = self._counter("catalog_updates", "Updates of the catalog that were applied.")
        self.catalog_updates_refused = self._counter(
            "catalog_updates_refused",
            "Updates that can't be read; each counts as a tombstone of its item, if its key is one's id.",
            "reason",
        )
        self.catalog_position = self._gauge("catalog_position", "Offset up to which updates are applied.")
        self.catalog_behind = self._gauge("catalog_behind", "Updates written and not applied yet.")
        self.catalog_merge_seconds = Histogram(
            "xgr_catalog_merge_seconds",
            "Merges of new and changed items: from their beginning to their place in what is served.",
            buckets=_MERGE_BUCKETS_S,
            registry=self.registry,
        )
        self.catalog_merges_failed = self._counter(
            "catalog_merges_failed", "Merges given up for lack of memory; what waits goes on waiting."
        )
        self.model_loads_failed = self._counter("model_loads_failed", "Challengers that could not be loaded.")
        # By version of the model. What is not loaded any more is removed by `keep_models`.
        self.model_fraction = self._gauge(
            "model_fraction", "Share of the users that a version has, by its role.", "version", "role"
        )
        self.model_requests = self._counter(
            "model_requests", "Requests computed by a version, by outcome; failed: its batch was.", "version", "outcome"
        )
        self.model_stage_seconds = Histogram(
            "xgr_model_stage_seconds",
            "Time that a version took for a request, while two are loaded; beside a shadow, for those compared.",
            ["version", "stage"],
            buckets=_STAGE_BUCKETS_S,
            registry=self.registry,
        )
        self.model_users_warm = self._gauge("model_users_warm", "Users whose prefix a version holds.", "version")
        self.model_cache_bytes = self._gauge(
            "model_cache_bytes", "Prefix cache of a version, used and budget.", "version", "kind"
        )
        self.shadow_requests = self._counter(
            "shadow_requests",
            "Answered requests that a shadow was to compute too: compared, shed, outdated, or why it could not.",
            *("version", "outcome"),
        )
        self.shadow_overlap = Histogram(
            "xgr_shadow_overlap",
            "Share of the primary's items that a shadow's answer to the same request has too.",
            ["version"],
            buckets=_OVERLAP_BUCKETS,
            registry=self.registry,
        )
        self._by_model: dict[tuple[str, ...], tuple[Any, Any]] = {}
        """Metrics by version and the child of one: by version, the metric's name, and the other labels."""
        for stage in STAGES:
            self.stage_seconds.label(stage)
        # Looked up once: it takes 2 µs each time.
        self._outcomes: dict[tuple[str, str], Counter] = {}
        for reason in ("expired", "cancelled"):
            self.requests_dropped.labels(reason)

    def count_request(self, outcome: str, cache: str) -> None:
        """A request was answered."""
        child = self._outcomes.get((outcome, cache))
        if child is None:
            child = self._outcomes[outcome, cache] = self.requests.labels(outcome, cache)
        child.inc()

    # By version of the model

    def count_model(self, version: str, responses: Sequence[RecommendResponse], *, compares: bool) -> None:
        """A version computed these; `compares`: how long they took is kept too."""
        times: dict[str, int] = {}
        for response in responses:
            outcome = response.error or response.status.value
            times[outcome] = times.get(outcome, 0) + 1
        for outcome, count in times.items():
            self._of_model(self.model_requests, version, outcome).inc(count)
        if compares:
            for response in responses:
                self.observe_model(version, response.stages_ms)

    def count_model_failure(self, version: str, requests: int) -> None:
        """A version failed on a batch of so many requests."""
        self._of_model(self.model_requests, version, "failed").inc(requests)

    def observe_model(self, version: str, stages_ms: Mapping[str, float]) -> None:
        """A version took so long for a request."""
        for stage in ("append", "decode"):
            if stage in stages_ms:
                self._of_model(self.model_stage_seconds, version, stage).observe(stages_ms[stage] / 1000)

    def count_shadow(self, version: str, outcome: str) -> None:
        """What became of a request that a shadow was to compute too."""
        self._of_model(self.shadow_requests, version, outcome).inc()

    def observe_overlap(self, version: str, share: float) -> None:
        """A shadow's answer had this share of the primary's items."""
        self._of_model(self.shadow_overlap, version).observe(share)

    def set_models(self, stats: Mapping[str, CacheStats]) -> None:
        """The caches of the versions that are loaded."""
        for version, cache in stats.items():
            self._of_model(self.model_users_warm, version).set(cache.users_warm)
            self._of_model(self.model_cache_bytes, version, "used").set(cache.bytes_used)
            self._of_model(self.model_cache_bytes, version, "budget").set(cache.bytes_budget)

    def set_fractions(self, fractions: Mapping[tuple[str, str], float]) -> None:
        """The share of the users that each (version, role) has; there are no others."""
        self.model_fraction.clear()
        for (version, role), fraction in fractions.items():
            self.model_fraction.labels(version, role).set(fraction)

    def keep_models(self, versions: Collection[str]) -> None:
        """Forget what was counted of all other versions: they are not loaded any more."""
        for key, (metric, _) in list(self._by_model.items()):
            if key[1] not in versions:
                del self._by_model[key]
                metric.remove(*key[1:])

    def _of_model(self, metric: Any, version: str, *labels: str) -> Any:
        key = (metric._name, version, *labels)
        found = self._by_model.get(key)
        if found is None:
            found = self._by_model[key] = (metric, metric.labels(version, *labels))
        return found[1]

    def _counter(self, name: str, description: str, *labels: str) -> Counter:
        return Counter(f"xgr_{name}", description, labels, registry=self.registry)

    def _gauge(self, name: str, description: str, *labels: str) -> Gauge:
        return Gauge(f"xgr_{name}", description, labels, registry=self.registry)
