"""How a transactional id's last transaction ended, by its coordinator. aiokafka has no request that asks for it."""

from __future__ import annotations

from aiokafka.client import AIOKafkaClient, CoordinationType
from aiokafka.errors import IncompatibleBrokerVersion, TransactionalIdAuthorizationFailed, for_code
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.types import CompactArray, CompactString, Int16, Int32, Int64, Schema, TaggedFields

NOT_FOUND = 105
"""TRANSACTIONAL_ID_NOT_FOUND."""
ABORTED = ("Ongoing", "PrepareAbort", "PrepareEpochFence", "CompleteAbort")
"""States after which it was aborted: one that is open is by whoever takes the id over."""


class _Response(Response):  # type: ignore[misc]
    API_KEY = 65
    API_VERSION = 0
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "transaction_states",
            CompactArray(
                ("error_code", Int16),
                ("transactional_id", CompactString("utf-8")),
                ("state", CompactString("utf-8")),
                ("timeout_ms", Int32),
                ("start_time_ms", Int64),
                ("producer_id", Int64),
                ("producer_epoch", Int16),
                (
                    "topics",
                    CompactArray(
                        ("topic", CompactString("utf-8")),
                        ("partitions", CompactArray(Int32)),
                        ("tags", TaggedFields),
                    ),
                ),
                ("tags", TaggedFields),
            ),
        ),
        ("tags", TaggedFields),
    )


class _Struct(RequestStruct):  # type: ignore[misc]
    FLEXIBLE_VERSION = True
    API_KEY = 65
    API_VERSION = 0
    RESPONSE_TYPE = _Response
    SCHEMA = Schema(("transactional_ids", CompactArray(CompactString("utf-8"))), ("tags", TaggedFields))


class _DescribeTransactions(Request[_Struct]):  # type: ignore[misc]
    API_KEY = 65

    def __init__(self, name: str) -> None:
        self._name = name

    def build(self, request_struct_class: type[_Struct]) -> _Struct:
        return request_struct_class([self._name], {})


async def was_committed(client: AIOKafkaClient, name: str) -> bool | None:
    """Whether the last transaction of this id was committed; where nothing says, it is taken to be: since somebody took
    the id over, and has not written since. None: there was none, or the broker does not tell. Raises `KafkaError`."""
    try:
        coordinator = await client.coordinator_lookup(CoordinationType.TRANSACTION, name)
        response = await client.send(coordinator, _DescribeTransactions(name))
    except (IncompatibleBrokerVersion, TransactionalIdAuthorizationFailed):  # the latter is said by who takes it over
        return None
    [(code, _, state, *_)] = response.transaction_states
    if code == NOT_FOUND:
        return None
    if code:
        raise for_code(code)
    return state not in ABORTED
