"""The messages: dictionaries ↔ our types (docs/protocol.md has every field, and the bytes of an example of each).

Unknown fields are ignored, so that newer senders can be read; a response is in its request's version.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from xgr_stream.errors import (
    InvalidEvent,
    InvalidInput,
    InvalidRequest,
    InvalidUpdate,
    MalformedMessage,
    UnsupportedVersion,
    XgrError,
)
from xgr_stream.stream.records import DEAD_LETTER_BYTES, Record, Unread
from xgr_stream.types import (
    MAX_ID_CHARS,
    NO_FILTER,
    CacheState,
    CatalogUpdate,
    ItemFilter,
    Recommendation,
    RecommendRequest,
    RecommendResponse,
    Shortfall,
    Status,
    Unscored,
    UserEvent,
)

VERSION = 1
DEFAULT_K = 10

Message = dict[str, Any]

_STATUSES = frozenset(status.value for status in Status)


class Sender(NamedTuple):
    """Who to answer when a request itself can't be read; `request_id` None: nobody."""

    request_id: str | None
    user_id: str


def parse_event(message: Message, key: bytes | None) -> UserEvent:
    """An event. Raises `InvalidInput` naming the field that is wrong."""
    get = message.get
    version = get("v")
    if version != VERSION or type(version) is not int:
        _check_version(message)
    item_id = get("item_id")
    if item_id is None:
        item_id = _required(message, "item_id", InvalidEvent)
    return UserEvent(_user_id(message, key, InvalidEvent), item_id, get("action"), get("timestamp_ms"))


def plain_event(message: Message, key: bytes | None) -> tuple[str, str, str | None] | None:
    """User, item and action of an event as nearly all are: ASCII ids, the user as the record's key. None for anything
    else, sound or not. In a third of the time that `parse_event` takes."""
    get = message.get
    item_id, action, field = get("item_id"), get("action"), get("user_id")
    if key is None or type(item_id) is not str or not item_id.isascii() or not 0 < len(item_id) <= MAX_ID_CHARS:
        return None
    version = get("v")
    if version != VERSION or type(version) is not int or not key.isascii() or not 0 < len(key) <= MAX_ID_CHARS:
        return None
    user_id = key.decode("ascii")
    if field is not None and field != user_id:
        return None
    if action is not None and (type(action) is not str or not action.isascii() or not 0 < len(action) <= MAX_ID_CHARS):
        return None
    timestamp_ms = get("timestamp_ms")
    if timestamp_ms is not None and (type(timestamp_ms) is not int or timestamp_ms < 0):
        return None
    return user_id, item_id, action


def parse_request(message: Message, key: bytes | None) -> RecommendRequest:
    """A request. Raises `InvalidInput` naming the field that is wrong."""
    _check_version(message)
    return RecommendRequest(
        request_id=_required(message, "request_id", InvalidRequest),
        user_id=_user_id(message, key, InvalidRequest),
        k=DEFAULT_K if (k := message.get("k")) is None else k,
        beam_width=message.get("beam_width"),
        filter=_filter(message),
        timeout_ms=message.get("timeout_ms"),
        min_offset=message.get("min_offset"),
        min_offset_partition=message.get("min_offset_partition"),
        reply_to=message.get("reply_to"),
        tail=message.get("tail"),
        caps=_caps(message),
        min_score=message.get("min_score"),
        temperature=message.get("temperature"),
        seed=message.get("seed"),
        candidates=None if message.get("candidates") is None else _listed(message, "candidates"),
    )


def parse_update(message: Message | None, key: bytes | None) -> CatalogUpdate:
    """An update of the catalog; None: a null value. Raises `InvalidInput` naming the field that is wrong."""
    item_id = updated_item(key)
    if message is None:
        return CatalogUpdate(item_id, None)
    _check_version(message)
    sid, tags = _required(message, "sid", InvalidUpdate), message.get("tags")
    if not isinstance(sid, list):
        raise InvalidUpdate(f"sid must be a list of codes, not {type(sid).__name__}")
    if tags is not None and not isinstance(tags, list):
        raise InvalidUpdate(f"tags must be a list of strings, not {type(tags).__name__}")
    available = message.get("available")
    return CatalogUpdate(item_id, tuple(sid), tuple(tags or ()), True if available is None else available)


def updated_item(key: bytes | None) -> str:
    """The item that an update is of. Raises `InvalidUpdate`."""
    try:
        return CatalogUpdate((key or b"").decode(), None).item_id
    except UnicodeDecodeError:
        raise InvalidUpdate(f"key must be the item's id in UTF-8, not {(key or b'')[:40]!r}") from None


def update_message(update: CatalogUpdate) -> Message | None:
    """What an update is written as, on the item's id as its key; None: a null value."""
    if update.sid is None:
        return None
    return {"v": VERSION, "sid": list(update.sid), "tags": list(update.tags), "available": update.available}


def sender(message: Message, key: bytes | None) -> Sender:
    """What of a faulty request is good enough to answer it."""
    request_id = message.get("request_id")
    readable = isinstance(request_id, str) and 0 < len(request_id) <= MAX_ID_CHARS
    try:
        user_id = _user_id(message, key, InvalidRequest)
    except InvalidInput:
        user_id = ""
    return Sender(request_id if readable else None, user_id if len(user_id) <= MAX_ID_CHARS else "")


def parse_response(message: Message) -> RecommendResponse:
    """A response, as a client reads it. Raises `MalformedMessage`."""
    user_id, request_id, status = answered(message)
    try:
        return RecommendResponse(
            request_id=request_id,
            user_id=user_id,
            status=status,
            items=tuple(
                Recommendation(item["item_id"], item["score"], tuple(item["sid"])) for item in message["items"]
            ),
            error=message.get("error"),
            message=message.get("message"),
            event_count=message["event_count"],
            event_offset=message["event_offset"],
            model_version=message["model_version"],
            catalog_version=message["catalog_version"],
            cache=CacheState(message["cache"]),
            stages_ms=message["stages_ms"],
            tail_computed=bool(message.get("tail_computed")),
            unscored={item: Unscored(why) for item, why in (message.get("unscored") or {}).items()},
            shortfall=None if (shortfall := message.get("shortfall")) is None else Shortfall(shortfall),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise MalformedMessage(f"not a response: {type(error).__name__} {error}") from None


def answered(message: Message) -> tuple[str, str, Status]:
    """User, request id and status of a response, the rest unread: a third of what parsing all of it takes, and a new
    owner reads back all answers of the last minute. Raises `MalformedMessage`."""
    _check_version(message)
    user_id, request_id, status = (message.get(name) for name in ("user_id", "request_id", "status"))
    if not (isinstance(user_id, str) and isinstance(request_id, str) and isinstance(status, str)):
        raise MalformedMessage(
            "not a response: user_id, request_id and status must be strings, not "
            f"{user_id!r:.80}, {request_id!r:.80} and {status!r:.80}"
        )
    if status not in _STATUSES:
        raise MalformedMessage(f"not a response: status is {status!r:.80}")
    return user_id, request_id, Status(status)


def returned_event(returned: object) -> UserEvent | None:
    """What an application's function made of a record. Raises `InvalidEvent`."""
    if returned is None or isinstance(returned, UserEvent):
        return returned
    raise InvalidEvent(f"the application's function must return a UserEvent or None, not {type(returned).__name__}")


def event_message(event: UserEvent) -> Message:
    return _without_none(
        v=VERSION, user_id=event.user_id, item_id=event.item_id, action=event.action, timestamp_ms=event.timestamp_ms
    )


def request_message(request: RecommendRequest) -> Message:
    return _without_none(
        v=VERSION,
        request_id=request.request_id,
        user_id=request.user_id,
        k=request.k,
        beam_width=request.beam_width,
        exclude=list(request.filter.exclude) or None,
        allow=list(request.filter.allow) or None,
        deny=list(request.filter.deny) or None,
        seen=request.filter.seen or None,
        timeout_ms=request.timeout_ms,
        min_offset=request.min_offset,
        min_offset_partition=request.min_offset_partition,
        reply_to=request.reply_to,
        tail=None if request.tail is None else list(request.tail),
        caps=dict(request.caps) or None,
        min_score=request.min_score,
        temperature=request.temperature,
        seed=request.seed,
        candidates=None if request.candidates is None else list(request.candidates),
    )


def response_message(response: RecommendResponse, stages_ms: Mapping[str, float] | None = None) -> Message:
    """`stages_ms`: instead of the response's own."""
    message = {
        "v": VERSION,
        "request_id": response.request_id,
        "user_id": response.user_id,
        "status": response.status.value,
        "items": [{"item_id": i.item_id, "score": i.score, "sid": i.sid} for i in response.items],
        "event_count": response.event_count,
        "event_offset": response.event_offset,
        "model_version": response.model_version,
        "catalog_version": response.catalog_version,
        "cache": response.cache.value,
        "stages_ms": dict(response.stages_ms if stages_ms is None else stages_ms),
    }
    if response.tail_computed:
        message["tail_computed"] = True
    if response.shortfall is not None:
        message["shortfall"] = response.shortfall.value
    if response.unscored:
        message["unscored"] = {item: why.value for item, why in response.unscored.items()}
    if response.error is not None:
        message |= {"error": response.error, "message": response.message}
    return message


def dead_letter_message(record: Record, error: XgrError) -> Message:
    """A record that can't be taken in, and why. Its key and value are cut to `DEAD_LETTER_BYTES`."""
    (key, key_bytes), (value, value_bytes) = _cut(record.key), _cut(record.value)
    return {
        "v": VERSION,
        "reason": error.code,
        "message": str(error).encode(errors="backslashreplace").decode(),  # an application's text may have surrogates
        "topic": record.topic,
        "partition": record.partition,
        "offset": record.offset,
        "timestamp_ms": record.timestamp_ms,
        "key": key,
        "key_bytes": key_bytes,
        "value": value,
        "value_bytes": value_bytes,
    }


def _cut(data: bytes | None) -> tuple[bytes | None, int | None]:
    """What is kept of it, and how long it was."""
    size = data.size if isinstance(data, Unread) else None if data is None else len(data)
    return (None, None) if data is None or size is None else (bytes(data[:DEAD_LETTER_BYTES]), size)


def _check_version(message: Mapping[str, Any]) -> None:
    version = message.get("v")
    if type(version) is not int:
        raise MalformedMessage(f"v must be the message's version, an integer such as {VERSION}, not {version!r:.80}")
    if version != VERSION:
        raise UnsupportedVersion(f"v must be {VERSION}, not {version}")


def _user_id(message: Message, key: bytes | None, error: type[InvalidInput]) -> str:
    """The user of a message: its own field, or the record's key. Where both are, they must agree."""
    field = message.get("user_id")
    if key is None:
        if field is None:
            raise error("user_id must be in the message or be the record's key, not missing from both")
    else:
        try:
            keyed = key.decode()
        except UnicodeDecodeError:
            raise error(f"key must be the user's id in UTF-8, not {key[:40]!r}") from None
        if field is None:
            field = keyed
        elif field != keyed:
            raise error(f"user_id must equal the record's key, not {field!r:.80} beside {keyed!r:.80}")
    if not isinstance(field, str):
        raise error(f"user_id must be a string, not {type(field).__name__}")
    return field


def _required(message: Message, name: str, error: type[InvalidInput]) -> Any:
    try:
        return message[name]
    except KeyError:
        raise error(f"{name} must be given, and it is missing") from None


def _filter(message: Message) -> ItemFilter:
    exclude, allow, deny = (_listed(message, name) for name in ("exclude", "allow", "deny"))
    seen = message.get("seen")
    if not (exclude or allow or deny or seen is not None):
        return NO_FILTER
    return ItemFilter(exclude, allow, deny, False if seen is None else seen)


def _caps(message: Message) -> dict[str, int] | tuple[()]:
    caps = message.get("caps")
    if caps is None:
        return ()
    if not isinstance(caps, dict):
        raise InvalidRequest(f"caps must be a map of tags to numbers of items, not {type(caps).__name__}")
    return caps


def _listed(message: Message, name: str) -> tuple[Any, ...]:
    values = message.get(name)
    if values is None:
        return ()
    if not isinstance(values, list):
        raise InvalidRequest(f"{name} must be a list of strings, not {type(values).__name__}")
    return tuple(values)


def _without_none(**fields: Any) -> Message:
    return {name: value for name, value in fields.items() if value is not None}
