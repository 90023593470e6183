"""What an operator watches, as Prometheus metrics in a registry of their own.

User ids and item ids never become labels.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

STAGES = ("wait", "append", "decode", "publish", "total")
_STAGE_BUCKETS_S = (
    *(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.02, 0.035, 0.05, 0.075, 0.1),
    *(0.15, 0.2, 0.35, 0.5, 0.75, 1.0, 2.5, 5.0, 10.0),
)

_MERGE_BUCKETS_S = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


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
        self.stage_seconds = Histogram(
            "xgr_stage_seconds",
            "Time that requests spent in each stage; total counts from the request record's timestamp.",
            ["stage"],
            buckets=_STAGE_BUCKETS_S,
            registry=self.registry,
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
            "catalog_updates_refused", "Updates that can't be read; each counts as a tombstone of its item.", "reason"
        )
        self.catalog_position = self._gauge("catalog_position", "Offset up to which updates are applied.")
        self.catalog_behind = self._gauge("catalog_behind", "Updates written and not applied yet.")
        self.catalog_merge_seconds = Histogram(
            "xgr_catalog_merge_seconds",
            "Merges of new and changed items: from their beginning to their place in what is served.",
            buckets=_MERGE_BUCKETS_S,
            registry=self.registry,
        )
        # Looked up once: it takes 2 µs each time, and an answer needs six.
        self._stages = {stage: self.stage_seconds.labels(stage) for stage in STAGES}
        self._outcomes: dict[tuple[str, str], Counter] = {}
        for reason in ("expired", "cancelled"):
            self.requests_dropped.labels(reason)

    def observe_stage(self, stage: str, seconds: float) -> None:
        """A request spent so long in a stage."""
        child = self._stages.get(stage)
        if child is None:
            child = self._stages[stage] = self.stage_seconds.labels(stage)
        child.observe(seconds)

    def count_request(self, outcome: str, cache: str) -> None:
        """A request was answered."""
        child = self._outcomes.get((outcome, cache))
        if child is None:
            child = self._outcomes[outcome, cache] = self.requests.labels(outcome, cache)
        child.inc()

    def _counter(self, name: str, description: str, *labels: str) -> Counter:
        return Counter(f"xgr_{name}", description, labels, registry=self.registry)

    def _gauge(self, name: str, description: str, *labels: str) -> Gauge:
        return Gauge(f"xgr_{name}", description, labels, registry=self.registry)
