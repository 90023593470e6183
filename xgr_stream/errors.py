"""The errors of xgr-stream.

    XgrError
    ├── InvalidInput            what the caller sent is wrong; sending it again will not help
    │   ├── InvalidEvent
    │   ├── InvalidRequest
    │   ├── InvalidUpdate       of the catalog
    │   ├── MalformedMessage    bytes that are not a message of ours
    │   ├── UnsupportedVersion  a message of a version that this release does not know
    │   ├── Misplaced           a record whose partition is not that of its user
    │   └── MessageTooLarge
    ├── ConfigError             what the operator set up is wrong; each message says how to mend it
    │   ├── CatalogError
    │   ├── CheckpointError
    │   └── TopologyError       topics, partitions, partitioners
    ├── RequestFailed           a well-formed request that cannot be answered with items
    │   ├── DeadlineExceeded
    │   ├── OverCapacity
    │   ├── NothingLegal        the filters leave no item
    │   ├── NotOwned            the user's partition moved to another worker
    │   └── ShuttingDown
    ├── Fenced                  another process writes under this worker's transactional ids, again and again
    ├── HistoryError            the history or its changelog is inconsistent; the partition stops
    └── EngineError             the device or the engine failed
        ├── OutOfMemory         no memory for this batch; the worker goes on
        └── DeviceLost          the device gives errors only; the worker stops

`code` is stable and part of the protocol (docs/protocol.md).
"""

from __future__ import annotations

from typing import ClassVar


class XgrError(Exception):
    """Base of every error that this library raises on purpose."""

    code: ClassVar[str] = "internal"


class InvalidInput(XgrError):
    code = "invalid"


class InvalidEvent(InvalidInput):
    code = "invalid_event"


class InvalidRequest(InvalidInput):
    code = "invalid_request"


class InvalidUpdate(InvalidInput):
    code = "invalid_update"


class MalformedMessage(InvalidInput):
    code = "malformed"


class UnsupportedVersion(InvalidInput):
    code = "unsupported_version"


class Misplaced(InvalidInput):
    code = "misplaced"


class MessageTooLarge(InvalidInput):
    code = "too_large"


class ConfigError(XgrError):
    code = "config"


class CatalogError(ConfigError):
    code = "catalog"


class CheckpointError(ConfigError):
    code = "checkpoint"


class TopologyError(ConfigError):
    code = "topology"


class RequestFailed(XgrError):
    code = "failed"


class DeadlineExceeded(RequestFailed):
    code = "deadline_exceeded"


class OverCapacity(RequestFailed):
    code = "over_capacity"


class NothingLegal(RequestFailed):
    code = "nothing_legal"


class NotOwned(RequestFailed):
    code = "not_owned"


class ShuttingDown(RequestFailed):
    code = "shutting_down"


class Fenced(XgrError):
    code = "fenced"


class HistoryError(XgrError):
    code = "history"


class EngineError(XgrError):
    code = "engine"


class OutOfMemory(EngineError):
    code = "out_of_memory"


class DeviceLost(EngineError):
    code = "device_lost"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether less at once can work: by type where one says it, and by torch's message where none does. Needs no
    torch."""
    names = {kind.__name__ for kind in type(error).__mro__}
    if isinstance(error, OutOfMemory | MemoryError) or "OutOfMemoryError" in names:
        return True
    text = str(error) if isinstance(error, RuntimeError) and "AcceleratorError" not in names else ""
    return "DefaultCPUAllocator: can't allocate memory" in text or "ALLOC_FAILED" in text


def error_from(code: str | None, message: str | None) -> XgrError:
    """The error that a response's `error` and `message` carry; an `XgrError` for a code of a newer version."""
    kinds = [XgrError]
    for kind in kinds:
        kinds.extend(kind.__subclasses__())
    return next((kind for kind in kinds if kind.code == code), XgrError)(message)
