"""How to reach the brokers, and the aiokafka clients that are made with it."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.client import AIOKafkaClient
from aiokafka.errors import (
    IncompatibleBrokerVersion,
    KafkaConnectionError,
    KafkaError,
    KafkaTimeoutError,
    NodeNotReadyError,
    RequestTimedOutError,
    for_code,
)
from aiokafka.protocol.commit import OffsetFetchRequest

from xgr_stream.config import MAX_TIMEOUT_MS, is_name
from xgr_stream.errors import ConfigError
from xgr_stream.stream.batches import read_any_batch
from xgr_stream.stream.records import Record

logger = logging.getLogger(__name__)

T = TypeVar("T")

RETRY_AFTER_S = 0.5
"""Between two attempts at what a broker that is away has kept from being done."""
STOP_TIMEOUT_S = 2.0
MAX_HEARTBEAT_MS = 300
TRANSACTION_BACKOFF_MS = 20
"""A broker that still ends the last transaction wants the next one to wait: milliseconds, not aiokafka's 100."""


SECURITY_SETTINGS = frozenset(
    {
        *("security_protocol", "ssl_context"),
        *("sasl_mechanism", "sasl_plain_username", "sasl_plain_password"),
        *("sasl_kerberos_service_name", "sasl_kerberos_domain_name", "sasl_oauth_token_provider"),
    }
)


def security(
    *,
    tls: bool = False,
    ca_file: str | Path | None = None,
    certificate_file: str | Path | None = None,
    key_file: str | Path | None = None,
    sasl_mechanism: str | None = None,
    username: str | None = None,
    password: str | None = None,
) -> dict[str, Any]:
    """`Connection.security` for TLS, SASL or both. A `ca_file` or a certificate of one's own means TLS.

    The broker's certificate is checked, and its name against the host's, always. Raises `ConfigError`.
    """
    if key_file is not None and certificate_file is None:
        raise ConfigError("certificate_file (--tls-certificate) must be given with key_file (--tls-key)")
    tls = tls or any((ca_file, certificate_file))
    settings: dict[str, Any] = {}
    if tls:
        try:
            context = ssl.create_default_context(cafile=ca_file)
            if certificate_file is not None:
                context.load_cert_chain(certificate_file, key_file)
        except (OSError, ssl.SSLError) as error:
            files = ", ".join(str(name) for name in (ca_file, certificate_file, key_file) if name is not None)
            raise ConfigError(f"TLS files must hold PEM certificates and a key, and {files} do not: {error}") from error
        settings["ssl_context"] = context
    if sasl_mechanism is not None:
        if not username or password is None:
            raise ConfigError(f"username and password must be given with SASL {sasl_mechanism}")
        settings |= {
            "sasl_mechanism": sasl_mechanism,
            "sasl_plain_username": username,
            "sasl_plain_password": password,
        }
    elif username or password is not None:
        raise ConfigError("sasl_mechanism must be given with a username or a password: PLAIN, SCRAM-SHA-256, ...")
    if settings:
        protocol = ("SASL_" if sasl_mechanism is not None else "") + ("SSL" if tls else "PLAINTEXT")
        settings["security_protocol"] = protocol
    return settings


async def _started(producer: AIOKafkaProducer) -> AIOKafkaProducer:
    """Leaves nothing open if it does not start."""
    _make_patient(producer.client)
    try:
        await producer.start()
    except BaseException:
        await stop_client(producer)
        raise
    return producer


@dataclass(frozen=True, slots=True)
class Connection:
    """The brokers of one cluster."""

    bootstrap: str
    """`host:port`, several separated by commas."""
    security: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """Passed on to aiokafka: `security_protocol`, `ssl_context`, `sasl_mechanism`, `sasl_plain_username`, ..."""
    fetch_max_wait_ms: int = 500
    """How long a broker may hold back an empty answer to a fetch. Kafka answers at once when something comes."""
    session_timeout_ms: int = 10_000
    """How long a worker may be silent before its partitions go to another. Heartbeats come ten times as often, and at
    least every 300 ms: by them a worker hears that the group is divided anew."""
    rebalance_timeout_ms: int = 10_000
    """How long the workers of a group may take to join when it changes."""
    group_instance_id: str | None = None
    """Static membership: a name of this worker's own, the same at each start. Its partitions then wait for it, for the
    session timeout at most, when it stops and starts again, instead of moving to others and back."""

    def __post_init__(self) -> None:
        if not is_name(self.bootstrap):
            raise ConfigError(f"bootstrap must be 'host:port', several separated by commas, not {self.bootstrap!r}")
        for address in self.bootstrap.split(","):
            host, _, port = address.rpartition(":")
            if not host or "/" in host or not port.isdecimal() or not 0 < int(port) < 1 << 16:
                raise ConfigError(f"bootstrap must be 'host:port', several separated by commas, not {self.bootstrap!r}")
        for name in ("session_timeout_ms", "rebalance_timeout_ms"):
            value = getattr(self, name)
            if type(value) is not int or not 1 <= value <= MAX_TIMEOUT_MS:
                raise ConfigError(f"{name} must be an integer from 1 to {MAX_TIMEOUT_MS}, not {value!r}")
        if self.group_instance_id is not None and not is_name(self.group_instance_id):
            raise ConfigError(f"group_instance_id must be printable text or None, not {self.group_instance_id!r}")
        unknown = set(self.security) - SECURITY_SETTINGS
        if unknown:
            known, others = ", ".join(sorted(SECURITY_SETTINGS)), ", ".join(sorted(unknown))
            raise ConfigError(f"security must hold settings of {known}, not {others}")

    @classmethod
    def of(cls, brokers: str | Connection) -> Connection:
        return brokers if isinstance(brokers, Connection) else cls(brokers)

    def admin(self) -> AIOKafkaAdminClient:
        return AIOKafkaAdminClient(bootstrap_servers=self.bootstrap, **self.security)

    def consumer(self, **options: Any) -> AIOKafkaConsumer:
        """A consumer that commits only when it is told to."""
        consumer = AIOKafkaConsumer(
            bootstrap_servers=self.bootstrap,
            enable_auto_commit=False,
            fetch_max_wait_ms=self.fetch_max_wait_ms,
            **self.security,
            **options,
        )
        set_right(consumer._client)
        return consumer

    def group_consumer(self, group_id: str, **options: Any) -> AIOKafkaConsumer:
        """A consumer that becomes a member of the group when it subscribes."""
        return self.consumer(
            group_id=group_id,
            session_timeout_ms=self.session_timeout_ms,
            rebalance_timeout_ms=self.rebalance_timeout_ms,
            heartbeat_interval_ms=min(self.session_timeout_ms // 10, MAX_HEARTBEAT_MS),
            group_instance_id=self.group_instance_id,
            **options,
        )

    async def start_producer(self, **options: Any) -> AIOKafkaProducer:
        """A started producer that keeps the order of what it is given: acks=all, one batch at a time per partition;
        idempotent where the broker lets it be."""
        settings = {"bootstrap_servers": self.bootstrap, "acks": "all", **self.security, **options}
        try:
            return await _started(AIOKafkaProducer(enable_idempotence=True, **settings))
        except KafkaError as error:
            if isinstance(error, UNREACHABLE):
                raise
            logger.warning("the broker refuses an idempotent producer (%s): a retry may write a record twice", error)
        return await _started(AIOKafkaProducer(**settings))

    async def start_transactional_producer(self, transactional_id: str, timeout_ms: int) -> AIOKafkaProducer:
        """A started producer of transactions. Whoever had the id before can write no more, and what it had not
        committed is aborted when this returns."""
        producer = AIOKafkaProducer(
            bootstrap_servers=self.bootstrap,
            transactional_id=transactional_id,
            transaction_timeout_ms=timeout_ms,
            retry_backoff_ms=TRANSACTION_BACKOFF_MS,
            **self.security,
        )
        return await _started(producer)


UNREACHABLE = (KafkaConnectionError, NodeNotReadyError, RequestTimedOutError)
"""What a client says that reaches no broker: at first, and later, of one that it had reached."""


def passes(error: BaseException) -> bool:
    """Whether trying again can help. aiokafka does not call its own time-out, nor a lost connection, retriable; and a
    request over a connection that has not yet heard what its broker can is refused as one that the broker can't."""
    passing = KafkaTimeoutError | KafkaConnectionError | IncompatibleBrokerVersion
    return isinstance(error, passing) or bool(getattr(error, "retriable", False))


async def asked(ask: Callable[[], Awaitable[T]], timeout_s: float) -> T:
    """What the brokers answer, asked again for so long as that can help. Raises the last error."""
    last: KafkaError | None = None
    try:
        async with asyncio.timeout(timeout_s):
            while True:
                try:
                    return await ask()
                except KafkaError as error:
                    if not passes(error):
                        raise
                    last = error
                await asyncio.sleep(RETRY_AFTER_S)
    except TimeoutError as error:
        raise last or error from None


def set_right(client: AIOKafkaClient) -> None:
    """Of a consumer, before it is started: what aiokafka gets wrong while brokers are away or change, and of records
    that others wrote."""
    read_any_batch()
    _make_patient(client)
    _heed_coordinators(client)


def _make_patient(client: AIOKafkaClient) -> None:
    """Have the client wait a while when no broker tells it the metadata. aiokafka 0.14 asks again at once, as fast as
    a closed port refuses it: a core of one's own and tens of thousands of log lines in 5 s."""
    update = client._metadata_update

    async def patient(*arguments: Any) -> bool:
        updated: bool = await update(*arguments)
        if not updated:
            await asyncio.sleep(RETRY_AFTER_S)
        return updated

    client._metadata_update = patient


def _heed_coordinators(client: AIOKafkaClient) -> None:
    """Have a broker heard that is not, or not yet, the group's coordinator when it is asked for committed offsets.
    aiokafka 0.14 looks at the partitions' errors alone, finds no partition, and takes nothing to be committed."""
    send = client.send

    async def heeding(node_id: int, request: Any, **options: Any) -> Any:
        response = await send(node_id, request, **options)
        if isinstance(request, OffsetFetchRequest) and (code := getattr(response, "error_code", 0)):
            raise for_code(code)
        return response

    client.send = heeding


class _Fetched(OrderedDict[TopicPartition, Any]):
    """What a consumer has fetched and not returned."""

    def __init__(self, topic: str) -> None:
        super().__init__()
        self._topic = topic

    def __setitem__(self, tp: TopicPartition, result: Any) -> None:
        records: Any = getattr(result, "_partition_records", None)  # an error has none
        if tp.topic == self._topic and hasattr(records, "_consumer_record"):
            records._consumer_record = _as_decoded
        super().__setitem__(tp, result)


def _as_decoded(tp: TopicPartition, record: Any) -> Any:
    return record


def read_plainly(consumer: AIOKafkaConsumer, topic: str) -> None:
    """Have a started consumer return this topic's records as they were decoded: with key, value, offset, timestamp and
    headers, but not the topic and the partition. aiokafka makes an object of its own of each otherwise, which takes
    two thirds of all the time that it takes to read; an aiokafka that does it in another way goes on doing it."""
    if hasattr(consumer._fetcher, "_records"):
        consumer._fetcher._records = _Fetched(topic)


async def stop_client(part: AIOKafkaConsumer | AIOKafkaProducer) -> None:
    """Stop a consumer or a producer, within a bound and without raising.

    Without a broker a producer's `stop` waits for what it has to write, and a consumer's raises the cancellation of
    its own fetches, its connections left open. What was not written is not acknowledged: it comes again.
    """
    stopping = asyncio.ensure_future(part.stop())
    try:
        done, _ = await asyncio.wait([stopping], timeout=STOP_TIMEOUT_S)
    finally:
        stopping.cancel()
    if done and not stopping.cancelled() and stopping.exception() is None:
        return
    name = type(part).__name__
    why = f"it took more than {STOP_TIMEOUT_S:g} s"
    if done:
        why = "its fetch was cancelled" if stopping.cancelled() else repr(stopping.exception())
    logger.warning("%s did not stop as it should (%s); its connections are closed", name, why)
    await (part.client if isinstance(part, AIOKafkaProducer) else part._client).close()


def record_of(message: Any) -> Record:
    """What an aiokafka consumer returned, as a record."""
    m = message
    # Half the time of the named tuple's own constructor.
    return tuple.__new__(Record, (m.topic, m.partition, m.offset, m.key, m.value, m.timestamp, tuple(m.headers)))
