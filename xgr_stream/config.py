"""Settings, as small frozen objects, each checked when it is built. Nothing is read from the environment."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field, fields
from typing import Literal, TypeVar, cast

from xgr_stream.errors import ConfigError
from xgr_stream.types import MAX_BEAM_WIDTH

Normalizer = Literal["level", "vocabulary", "legal"]
Codec = Literal["msgpack", "json"]
Partitioner = Literal["murmur2", "crc32", "any"]
Role = Literal["canary", "shadow"]
KvCacheDtype = Literal["auto", "fp8"]

Settings = TypeVar("Settings")

MIB = 1 << 20

MAX_SEGMENT_EVENTS = 500
"""With the longest item ids and actions (256 characters of 4 bytes) a segment of so many is still within what a broker
takes by default (1,048,588 bytes). One that it refuses stops the worker."""

MAX_BATCH_BYTES = 64 * MIB
"""Of a batch of records once it is decompressed. Brokers bound it as it lies there alone, and a thousand times as much
may come of that."""

MAX_TIMEOUT_MS = 2**31 - 1
"""What Kafka has 32 bits for."""

_DEVICE = re.compile(r"cpu|cuda(:[0-9]+)?")
_TOPIC_NAME = re.compile(r"(?!\.{1,2}$)[a-zA-Z0-9._-]{1,249}")


def is_topic_name(value: object) -> bool:
    """Whether Kafka takes it as a topic's name."""
    return isinstance(value, str) and _TOPIC_NAME.fullmatch(value) is not None


def is_name(value: object) -> bool:
    """Whether it can name a group or a member of it. A byte of a command line that is no UTF-8 comes as half of a
    surrogate pair, which is not printable."""
    return isinstance(value, str) and value != "" and value.isprintable()


def _topic_name(name: str, value: object) -> None:
    if not is_topic_name(value):
        raise ConfigError(
            f"{name} must be a topic's name, 1 to 249 characters of a-z, A-Z, 0-9, '.', '_' and '-', and neither '.' "
            f"nor '..', not {value!r}"
        )


def _at_least(name: str, value: float, least: float, kind: type = int) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, kind)) or not least <= value < math.inf:
        what = "an integer" if kind is int else "a finite number"
        raise ConfigError(f"{name} must be {what} of at least {least}, not {value!r}")


def check_settings(name: str, value: object, kind: type, *, optional: bool = False) -> None:
    """Raise `ConfigError` unless the argument of this name is settings of this kind, or None where that is allowed."""
    if not isinstance(value, kind) and not (optional and value is None):
        raise ConfigError(f"{name} must be {kind.__name__}(...){' or None' if optional else ''}, not {value!r}")


def settings_or_default(name: str, value: object, kind: type[Settings]) -> Settings:
    """The argument of this name, or the default settings for None. Raises `ConfigError` for anything else."""
    check_settings(name, value, kind, optional=True)
    return kind() if value is None else cast("Settings", value)


@dataclass(frozen=True, slots=True)
class WindowConfig:
    """Which of a user's events are in context: all of the first `max_events`, then a window whose start moves in
    steps of `stride` (half of `max_events` by default), so that it depends on the event count alone."""

    max_events: int = 512
    stride: int | None = None

    def __post_init__(self) -> None:
        _at_least("max_events", self.max_events, 1)
        if self.stride is not None and not (type(self.stride) is int and 1 <= self.stride <= self.max_events):
            raise ConfigError(f"stride must be from 1 to max_events ({self.max_events}), not {self.stride!r}")

    def start(self, event_count: int) -> int:
        """Number of the first event in context when the user has `event_count` events."""
        if event_count <= self.max_events:
            return 0
        stride = self.stride or max(1, self.max_events // 2)
        return -(-(event_count - self.max_events) // stride) * stride


@dataclass(frozen=True, slots=True)
class CacheConfig:
    """Memory of the prefix KV cache."""

    budget_bytes: int = 512 * MIB
    page_size: int = 64
    """Tokens per page."""
    host_bytes: int = 0
    """Host memory for prefixes that the budget has no room for, allocated at start and pinned; 0: they are dropped."""
    file_bytes: int = 0
    """Size of a local file for those that host memory has no room for, taken at start; 0: they are dropped."""
    file_directory: str | None = None
    """Where that file is, on a fast local disk. It has no name, and is gone with the process."""
    kv_cache_dtype: KvCacheDtype = "auto"
    """What cached keys and values are kept in. `auto`: what the model computes in. `fp8`: e4m3, each head's by a scale
    of its own that follows from the weights; half the bytes of bfloat16, and scores that differ a little."""

    def __post_init__(self) -> None:
        _at_least("budget_bytes", self.budget_bytes, 1)
        _at_least("host_bytes", self.host_bytes, 0)
        _at_least("file_bytes", self.file_bytes, 0)
        if self.file_bytes and not self.host_bytes:
            raise ConfigError(f"file_bytes must be 0 without host_bytes, which it is behind, not {self.file_bytes!r}")
        if not isinstance(self.file_directory, (str, type(None))) or self.file_directory == "":
            raise ConfigError(f"file_directory must be the path of a directory or None, not {self.file_directory!r}")
        if bool(self.file_bytes) != (self.file_directory is not None):
            raise ConfigError(
                f"file_bytes and file_directory must be given together, not {self.file_bytes!r} and "
                f"{self.file_directory!r}"
            )
        if self.kv_cache_dtype not in ("auto", "fp8"):
            raise ConfigError(f"kv_cache_dtype must be 'auto' or 'fp8', not {self.kv_cache_dtype!r}")
        if type(self.page_size) is not int or self.page_size < 1 or self.page_size & (self.page_size - 1):
            raise ConfigError(f"page_size must be a power of two, not {self.page_size!r}")


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """How the engine computes."""

    beam_width: int = 64
    """Beams of a request that names none (never below its k)."""
    widened_beam_width: int = 512
    """Beams that a request is decoded again with, at most, when its caps left fewer than k items of those it had."""
    normalizer: Normalizer | None = None
    """None: what the checkpoint's xgr.json names, else `level`."""
    device: str = "cpu"
    """Where a model that is loaded from a path computes: `cpu`, `cuda` or `cuda:N`."""
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """None: float32 on the CPU, bfloat16 on CUDA."""
    fp8: bool = False
    """The layers' products in FP8, weights and activations (CUDA). Faster, and the beams differ a little."""
    window: WindowConfig | None = None
    """None: what the checkpoint's xgr.json names, else `WindowConfig()`."""
    cache: CacheConfig = field(default_factory=CacheConfig)
    max_batch_rows: int = 2048
    """Beams in one decode, over all its requests."""
    max_batch_tokens: int = 2048
    """New tokens in one append step, over all its users; longer prefills are cut into chunks."""
    append_piece_ms: float | None = None
    """How long a batch of appends may take, since a request that comes meanwhile waits for it: so long, or twice what a
    batch takes however small it is, if that is more (some 3 ms of a large model). None: 20 on the CPU, 1.3 on CUDA."""
    prefill_chunk_tokens: int | None = None
    """Longer prefills are computed in chunks of so many tokens while other requests come, which wait for one chunk
    then, not for all of it. None: 384 on CUDA, whole on the CPU; 0: whole."""
    graph_bytes: int = 256 * MIB
    """Memory of captured CUDA graphs, on the device; beyond it the least recently used is captured again when it is
    next needed. What they compute in is not counted: the batches' work space, which all graphs of a kind share."""

    def __post_init__(self) -> None:
        for name in ("beam_width", "widened_beam_width"):
            width = getattr(self, name)
            _at_least(name, width, 1)
            if width > MAX_BEAM_WIDTH:
                raise ConfigError(f"{name} must be from 1 to {MAX_BEAM_WIDTH}, not {width!r}")
        if self.dtype not in (None, "float32", "bfloat16", "float16"):
            raise ConfigError(f"dtype must be None, 'float32', 'bfloat16' or 'float16', not {self.dtype!r}")
        if not isinstance(self.device, str) or _DEVICE.fullmatch(self.device) is None:
            raise ConfigError(f"device must be 'cpu', 'cuda' or 'cuda:N' (N from 0), not {self.device!r}")
        if not isinstance(self.fp8, bool):
            raise ConfigError(f"fp8 must be True or False, not {self.fp8!r}")
        check_settings("window", self.window, WindowConfig, optional=True)
        check_settings("cache", self.cache, CacheConfig)
        if self.normalizer not in (None, "level", "vocabulary", "legal"):
            raise ConfigError(f"normalizer must be None, 'level', 'vocabulary' or 'legal', not {self.normalizer!r}")
        _at_least("max_batch_rows", self.max_batch_rows, MAX_BEAM_WIDTH)
        _at_least("max_batch_tokens", self.max_batch_tokens, 1)
        if self.append_piece_ms is not None:
            _at_least("append_piece_ms", self.append_piece_ms, 0.001, float)
        if self.prefill_chunk_tokens is not None:
            _at_least("prefill_chunk_tokens", self.prefill_chunk_tokens, 0)
        _at_least("graph_bytes", self.graph_bytes, 1)


def check_role(role: object, fraction: object) -> None:
    """Raise `ConfigError` unless a challenger can have this role for this share of the users."""
    if role not in ("canary", "shadow"):
        raise ConfigError(f"role must be 'canary' or 'shadow', not {role!r}")
    if isinstance(fraction, bool) or not isinstance(fraction, int | float) or not 0 <= fraction <= 1:
        raise ConfigError(f"fraction must be a number from 0 to 1, not {fraction!r}")


@dataclass(frozen=True, slots=True)
class ChallengerConfig:
    """A second version of the model, loaded beside the one that serves. It has the worker's `EngineConfig`, but for the
    size of its own cache."""

    model: str
    """Its checkpoint directory."""
    role: Role = "shadow"
    """`canary`: its share of the users gets its answers. `shadow`: they get the primary's, and it computes them again,
    in time that nobody needs, to be compared."""
    fraction: float = 0.05
    """Its share of the users, from 0 to 1: always the same ones of a version, on every worker."""
    catalog: str | None = None
    """Its catalog's file. None: the table that the primary's was made of."""
    catalog_topic: str | None = None
    """Where the updates of its catalog are. None: the primary's, if its semantic IDs are of the same codes."""
    cache_bytes: int = 512 * MIB
    """Memory for its prefixes, besides the primary's."""

    def __post_init__(self) -> None:
        for name in ("model", "catalog"):
            value = getattr(self, name)
            if not (isinstance(value, str) and value) and (value is not None or name == "model"):
                raise ConfigError(f"{name} must be a string that is not empty, not {value!r}")
        if self.catalog_topic is not None:
            _topic_name("catalog_topic", self.catalog_topic)
        check_role(self.role, self.fraction)
        _at_least("cache_bytes", self.cache_bytes, 1)


@dataclass(frozen=True, slots=True)
class HistoryConfig:
    """What is kept of each user's events."""

    keep_events: int = 2048
    """Events kept per user, at least; a multiple of `segment_events` more while a segment fills. Must cover the
    engine's window."""
    segment_events: int = 32
    """Events per sealed changelog segment, which is one record."""

    def __post_init__(self) -> None:
        _at_least("keep_events", self.keep_events, 1)
        _at_least("segment_events", self.segment_events, 1)
        if self.segment_events > MAX_SEGMENT_EVENTS:
            raise ConfigError(f"segment_events must be from 1 to {MAX_SEGMENT_EVENTS}, not {self.segment_events!r}")

    def first_kept(self, event_count: int) -> int:
        """Number of the first event kept when the user has `event_count` events: whole segments are let go, and only
        when another one is full, so that what is kept depends on the event count alone."""
        kept_segments = -(-self.keep_events // self.segment_events)
        return max(0, event_count // self.segment_events - kept_segments) * self.segment_events


@dataclass(frozen=True, slots=True)
class TopicNames:
    """The topics of one recommender. Another must have others, but for the dead letters' and the catalog's."""

    events: str = "user-events"
    requests: str = "rec-requests"
    responses: str = "rec-responses"
    dead_letters: str = "rec-dead-letters"
    changelog: str = "xgr-history-changelog"
    catalog: str = "catalog-updates"
    """Of one partition, since a catalog's version is a place in it."""

    def __post_init__(self) -> None:
        names = {role.name: getattr(self, role.name) for role in fields(self)}
        for role, name in names.items():
            _topic_name(role, name)
        if len({name.replace(".", "_") for name in names.values()}) != len(names):
            raise ConfigError(
                "topic names must differ from each other, and by more than '.' for '_', which a broker refuses, not "
                f"{list(names.values())}"
            )


@dataclass(frozen=True, slots=True)
class SnapshotConfig:
    """Local copies of the histories, so that a restart reads only what the changelog got after them."""

    directory: str
    """On a local disk. Holds personal data, readable for its owner alone."""
    interval_s: float = 300.0
    """Between two snapshots of a partition; one more is written on shutdown."""
    bytes_per_s: int = 32 * MIB
    """How fast they are written while the worker serves."""
    max_age_s: float = 86_400.0
    """Files older than this are deleted: partitions that went to other workers leave theirs behind."""

    def __post_init__(self) -> None:
        if not isinstance(self.directory, str) or not self.directory:
            raise ConfigError(f"directory must be the path of a directory, not {self.directory!r}")
        _at_least("interval_s", self.interval_s, 0.1, float)
        _at_least("bytes_per_s", self.bytes_per_s, 1024)
        _at_least("max_age_s", self.max_age_s, 1, float)


@dataclass(frozen=True, slots=True)
class TransactionConfig:
    """What a record causes (history, response, dead letter, its offset) in one Kafka transaction: a reader with
    `read_committed` sees each answer once. For the aiokafka driver."""

    commit_interval_ms: int = 100
    """How long events wait for each other to share a transaction. An answer is committed at once, and all before it."""
    timeout_s: float = 30.0
    """A transaction that takes longer is given up, by the worker and by the broker: as long may the readers be held
    back behind a worker that died, if no other takes its partitions. At most the broker's
    `transaction.max.timeout.ms`."""

    def __post_init__(self) -> None:
        _at_least("commit_interval_ms", self.commit_interval_ms, 0)
        _at_least("timeout_s", self.timeout_s, 1, float)


@dataclass(frozen=True, slots=True)
class StreamConfig:
    """How events and requests are taken in and answered."""

    topics: TopicNames = field(default_factory=TopicNames)
    partitions: int | None = 4
    """Partitions of the topics that are missing when a worker starts, which it creates; as many as its sisters have
    where some exist. None: a missing topic is refused."""
    codec: Codec = "msgpack"
    """Encoding of what we write; what we read may be either (told apart by its first byte)."""
    history: HistoryConfig = field(default_factory=HistoryConfig)
    snapshots: SnapshotConfig | None = None
    """None: every restart reads the whole changelog."""
    standby_bytes: int = 0
    """Memory for copies of the histories of other workers' partitions, so that a partition that comes over is served
    without its changelog being read whole. About as much as one's own histories take; 0: no copies."""
    transactions: TransactionConfig | None = None
    """None: at least once. An answer may then be seen twice, with one request id."""
    partitioner: Partitioner = "murmur2"
    """How producers place keys. A record whose partition disagrees is refused; `any` accepts all."""
    default_timeout_ms: int = 1_000
    """Deadline of a request that names none, from its record's timestamp."""
    dedup_window_ms: int = 60_000
    """How long answers are kept to answer a redelivered request without computing it again."""
    max_message_bytes: int = 1 * MIB
    """Of an event, a request or an update; half of `MAX_BATCH_BYTES` at most."""
    max_pending_requests: int = 4_096
    """Requests waiting for the engine before new ones are refused with `over_capacity`."""
    max_open_events: int = 10_000
    """Events of a partition that are taken and not durable yet before the partition rests, read again once it has
    fewer. Bounds what is in memory while the broker is away or slow."""
    max_unpublished_answers: int = 4_096
    """Answers that the broker has not acknowledged before requests rest too; events rest at half as many."""
    max_waiting_bytes: int = 256 * MIB
    """Of requests waiting for the engine before new ones are refused, as with `max_pending_requests`; and of everything
    that the broker has not acknowledged before requests rest, events at half as much. Over all partitions."""
    shutdown_timeout_s: float = 10.0
    warm_users: int = 10_000
    """Users of each restored partition who are offered for warming, the most recently active first; the scheduler takes
    those it has room for."""

    @property
    def isolation_level(self) -> str:
        """What the worker reads of its topics: with transactions, nothing that may yet be aborted."""
        return "read_uncommitted" if self.transactions is None else "read_committed"

    @property
    def max_answer_bytes(self) -> int:
        """An answer may be larger than what it answers: at least what brokers take by default."""
        return max(self.max_message_bytes, MIB)

    def __post_init__(self) -> None:
        check_settings("topics", self.topics, TopicNames)
        check_settings("history", self.history, HistoryConfig)
        check_settings("snapshots", self.snapshots, SnapshotConfig, optional=True)
        check_settings("transactions", self.transactions, TransactionConfig, optional=True)
        if self.codec not in ("msgpack", "json"):
            raise ConfigError(f"codec must be 'msgpack' or 'json', not {self.codec!r}")
        if self.partitioner not in ("murmur2", "crc32", "any"):
            raise ConfigError(f"partitioner must be 'murmur2', 'crc32' or 'any', not {self.partitioner!r}")
        if self.partitions is not None:
            _at_least("partitions", self.partitions, 1)
        _at_least("default_timeout_ms", self.default_timeout_ms, 1)
        _at_least("dedup_window_ms", self.dedup_window_ms, 0)
        _at_least("max_message_bytes", self.max_message_bytes, 1024)
        if self.max_message_bytes > MAX_BATCH_BYTES // 2:
            raise ConfigError(f"max_message_bytes must be at most {MAX_BATCH_BYTES // 2}, not {self.max_message_bytes}")
        _at_least("max_pending_requests", self.max_pending_requests, 1)
        _at_least("max_open_events", self.max_open_events, 1)
        _at_least("max_unpublished_answers", self.max_unpublished_answers, 1)
        _at_least("max_waiting_bytes", self.max_waiting_bytes, 1)
        _at_least("shutdown_timeout_s", self.shutdown_timeout_s, 0, float)
        _at_least("warm_users", self.warm_users, 0)
        _at_least("standby_bytes", self.standby_bytes, 0)
