"""The values that cross the library's borders: events, requests and updates of the catalog in, recommendations out.

Plain frozen objects, free of torch and faust, so that a producer, a client or a test can use them alone.
Each object checks itself once, when it is built, and raises `InvalidRequest`, `InvalidEvent` or `InvalidUpdate` naming
the field, its value and what was expected.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from numbers import Integral, Real
from typing import Any, NamedTuple, cast

from xgr_stream.errors import InvalidEvent, InvalidRequest, InvalidUpdate, XgrError

MAX_ID_CHARS = 256
MAX_BEAM_WIDTH = 1024
MAX_EXCLUDE_ITEMS = 10_000
MAX_TAGS = 64
MAX_TAGS_TOGETHER = 8
"""Tags that an item must have at once, in one entry of `allow` or `deny`."""
MAX_CANDIDATES = 1024
MAX_TAIL_TOKENS = 64
MIN_TEMPERATURE = 0.01
MAX_TEMPERATURE = 100.0
MAX_ITEM_TAGS = 1_024
"""Tags of one item that an update may give it."""


class CacheState(StrEnum):
    """Where a request found its user's prefix."""

    WARM = "warm"
    """Prefix KV of every event was resident; nothing but the beam decode ran."""
    APPENDED = "appended"
    """The prefix was resident but some events were still to append."""
    HOST = "host"
    """The prefix was brought back from host memory for this request; events that it lacked were appended."""
    COLD = "cold"
    """The whole context was prefilled for this request."""
    NONE = "none"
    """No prefix was used: unknown user, an empty history, or an answer that needed no model."""


class Status(StrEnum):
    """The outcome of a request."""

    OK = "ok"
    UNKNOWN_USER = "unknown_user"
    """Answered, but from popularity: no event of the user has been seen."""
    ERROR = "error"


class Shortfall(StrEnum):
    """Why an answer has fewer than k items."""

    EXHAUSTED = "exhausted"
    """Nothing else passes the filters, caps and score threshold; or the user is unknown, and the catalog names no
    popularity to choose by."""
    THRESHOLD = "threshold"
    """What else was found has scores below the threshold. More beams, which are not tried for that, might still find
    others above it, as they might find better items than those of any answer."""
    BEAMS = "beams"
    """The caps left no more of as many beams as may be used (or popular items, for an unknown user). Others may be
    among more of them."""


class Unscored(StrEnum):
    """Why a candidate has no score."""

    UNKNOWN = "unknown"
    """The catalog does not hold it."""
    UNAVAILABLE = "unavailable"
    """It is not to be had now."""
    UNKNOWN_USER = "unknown_user"
    """No event of the user with a known item is in context, so that nothing has a score."""


def _identifier(owner: type[Exception], name: str, value: object) -> None:
    if not isinstance(value, str) or not 0 < len(value) <= MAX_ID_CHARS:
        raise owner(f"{name} must be a string of 1 to {MAX_ID_CHARS} characters, not {_shown(value)}")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise owner(f"{name} must be valid Unicode, without lone surrogates, not {_shown(value)}") from None


def check_user_id(value: str) -> str:
    """The value, if it may be a user's id. Raises `InvalidEvent`."""
    _identifier(InvalidEvent, "user_id", value)
    return value


def _integer(value: object) -> object:
    """An integer of any kind, NumPy's for instance, as an `int`; anything else, a truth value too, as it came."""
    return value if isinstance(value, bool) or not isinstance(value, Integral) else int(value)


def _number(value: object) -> Any:
    """A real number of any kind as an `int` or a `float`; anything else, a truth value too, as it came."""
    if isinstance(value, Integral):
        return _integer(value)
    return float(value) if isinstance(value, Real) else value


def _caps(value: object) -> Caps:
    # Pairs, too: that is what they are kept as.
    pairs = tuple(value.items()) if isinstance(value, Mapping) else value
    if not isinstance(pairs, tuple) or not all(isinstance(pair, tuple) and len(pair) == 2 for pair in pairs):
        raise InvalidRequest(f"caps must be a mapping of tags to numbers of items, not {_shown(value)}")
    if len(pairs) > MAX_TAGS:
        raise InvalidRequest(f"caps must hold at most {MAX_TAGS} entries, not {len(pairs)}")
    pairs = tuple((tag, _integer(most)) for tag, most in pairs)
    for tag, most in pairs:
        _identifier(InvalidRequest, "a tag of caps", tag)
        if type(most) is not int or not 1 <= most <= MAX_BEAM_WIDTH:
            raise InvalidRequest(
                f"caps must be integers from 1 to {MAX_BEAM_WIDTH}, and that of {_shown(tag)} is {_shown(most)}"
            )
    return tuple(sorted(dict(pairs).items()))


def _natural_numbers(value: object) -> tuple[int, ...] | None:
    """A sequence's; None: it is not one of such."""
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        return None
    numbers = tuple(map(_integer, value))
    return cast("tuple[int, ...]", numbers) if all(type(n) is int and n >= 0 for n in numbers) else None


def _token_ids(name: str, value: object) -> tuple[int, ...]:
    tokens = _natural_numbers(value)
    if tokens is None:
        raise InvalidRequest(f"{name} must be None or a sequence of token ids of at least 0, not {_shown(value)}")
    if len(tokens) > MAX_TAIL_TOKENS:
        raise InvalidRequest(f"{name} must hold at most {MAX_TAIL_TOKENS} tokens, not {len(tokens)}")
    return tokens


def _codes(value: object) -> tuple[int, ...]:
    codes = _natural_numbers(value)
    if not codes:
        raise InvalidUpdate(f"sid must be None or a sequence of codes of at least 0, not {_shown(value)}")
    return codes


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}... ({type(value).__name__})"


def _other(values: object, listed: bool) -> str:
    """What is no sequence of strings, or what it holds that is none."""
    if not listed:
        return f"not {_shown(values)}"
    others = (value for value in cast("Collection[object]", values) if not isinstance(value, str))
    return f"and holds {_shown(next(others))}"


@dataclass(frozen=True, slots=True)
class UserEvent:
    """One thing a user did with one item. `timestamp_ms` is informative: order is the topic's."""

    user_id: str
    item_id: str
    action: str | None = None
    timestamp_ms: int | None = None

    def __post_init__(self) -> None:
        # One is built for every event: what nearly all of them are is seen without a call.
        user_id, item_id = self.user_id, self.item_id
        if type(user_id) is not str or not user_id.isascii() or not 0 < len(user_id) <= MAX_ID_CHARS:
            _identifier(InvalidEvent, "user_id", user_id)
        if type(item_id) is not str or not item_id.isascii() or not 0 < len(item_id) <= MAX_ID_CHARS:
            _identifier(InvalidEvent, "item_id", item_id)
        if self.action is not None:
            _identifier(InvalidEvent, "action", self.action)
        if self.timestamp_ms is not None and (type(self.timestamp_ms) is not int or self.timestamp_ms < 0):
            milliseconds = _integer(self.timestamp_ms)
            if type(milliseconds) is not int or milliseconds < 0:
                raise InvalidEvent(f"timestamp_ms must be milliseconds since 1970 or None, not {_shown(milliseconds)}")
            object.__setattr__(self, "timestamp_ms", milliseconds)


@dataclass(frozen=True, slots=True)
class CatalogUpdate:
    """What an item is from now on, all of it. `sid` None: it is gone; one of the catalog's own table is then as one
    that is not available, any other is unknown again."""

    item_id: str
    sid: tuple[int, ...] | None
    """One code per level."""
    tags: tuple[str, ...] = ()
    available: bool = True

    def __post_init__(self) -> None:
        _identifier(InvalidUpdate, "item_id", self.item_id)
        if self.sid is not None:
            object.__setattr__(self, "sid", _codes(self.sid))
        # A string is a collection of strings too, and its characters are nobody's tags, nor are a mapping's keys.
        tags = cast(object, self.tags)
        if not isinstance(tags, Collection) or isinstance(tags, str | bytes | Mapping):
            raise InvalidUpdate(f"tags must be a collection of strings, not {_shown(self.tags)}")
        if len(self.tags) > MAX_ITEM_TAGS:
            raise InvalidUpdate(f"tags must be at most {MAX_ITEM_TAGS}, not {len(self.tags)}")
        for tag in self.tags:
            _identifier(InvalidUpdate, "an entry of tags", tag)
        object.__setattr__(self, "tags", tuple(sorted(set(self.tags))))
        if type(self.available) is not bool:
            raise InvalidUpdate(f"available must be true or false, not {_shown(self.available)}")

    def check(self, codes: Sequence[int]) -> None:
        """Raises `InvalidUpdate` unless the semantic ID is one of `codes` codes per level."""
        if self.sid is None:
            return
        if len(self.sid) != len(codes):
            raise InvalidUpdate(f"sid must hold {len(codes)} codes, one per level, not {_shown(self.sid)}")
        for level, (code, limit) in enumerate(zip(self.sid, codes, strict=True)):
            if code >= limit:
                raise InvalidUpdate(f"sid must hold a code from 0 to {limit - 1} at level {level}, not {code}")


Tags = str | Collection[str]
"""An entry of `allow` or `deny`: a tag, or tags that an item must all have to match."""


def _entry(name: str, value: object) -> str | tuple[str, ...]:
    """One form for each meaning: a tag, or several distinct ones in their order."""
    if isinstance(value, str):
        return value
    # A mapping is a collection of its keys too, and what it maps them to would be passed over in silence.
    listed = isinstance(value, Collection) and not isinstance(value, Mapping)
    listed = listed and all(isinstance(tag, str) for tag in cast("Collection[object]", value))
    tags = set(cast("Collection[str]", value)) if listed else set()
    if not 1 <= len(tags) <= MAX_TAGS_TOGETHER:
        raise InvalidRequest(
            f"{name} must be a sequence of strings, or of collections of 1 to {MAX_TAGS_TOGETHER} strings, and holds "
            f"{_shown(value)}"
        )
    return next(iter(tags)) if len(tags) == 1 else tuple(sorted(tags))


@dataclass(frozen=True, slots=True)
class ItemFilter:
    """Which items a request may return. An item passes if it is not in `exclude`, matches an entry of `allow` (when
    there are any), none of `deny` and, with `seen`, is in no event of the user's kept history. An entry is a tag that
    an item has, or several tags (a tuple) of which it has all. Items and tags that the catalog does not know are
    ignored in `exclude` and `deny`; an `allow` of unknown tags only allows nothing."""

    exclude: tuple[str, ...] = ()
    allow: tuple[str | tuple[str, ...], ...] = ()
    deny: tuple[str | tuple[str, ...], ...] = ()
    seen: bool = False
    """Whether everything that the user's history keeps is excluded too: up to the event that the answer saw last, and
    not only what is in context."""

    def __post_init__(self) -> None:
        for name, limit in (("exclude", MAX_EXCLUDE_ITEMS), ("allow", MAX_TAGS), ("deny", MAX_TAGS)):
            values = getattr(self, name)
            # A string is a collection of strings too, and its characters are nobody's items; of a mapping it would be
            # the keys, and what they are mapped to passed over.
            listed = isinstance(values, Collection) and not isinstance(values, str | bytes | Mapping)
            plain = listed and all(isinstance(v, str) for v in values)
            if not listed or not (plain or limit == MAX_TAGS):
                raise InvalidRequest(f"{name} must be a sequence of strings, {_other(values, listed)}")
            if len(values) > limit:
                raise InvalidRequest(f"{name} must hold at most {limit} entries, not {len(values)}")
            object.__setattr__(self, name, tuple(values) if plain else tuple(_entry(name, v) for v in values))
        if type(self.seen) is not bool:
            raise InvalidRequest(f"seen must be true or false, not {_shown(self.seen)}")

    @classmethod
    def of(
        cls,
        exclude: Collection[str] = (),
        allow: Collection[Tags] = (),
        deny: Collection[Tags] = (),
        seen: bool = False,
    ) -> ItemFilter:
        """From collections of any kind: lists, sets, the keys of a dictionary."""
        tags = tuple[str | tuple[str, ...], ...]
        return cls(cast("tuple[str, ...]", exclude), cast(tags, allow), cast(tags, deny), seen)


NO_FILTER = ItemFilter()

Caps = tuple[tuple[str, int], ...]
"""(tag, most items that may have it); a tag that ends in `*` stands for each tag that begins so, by itself."""


@dataclass(frozen=True, slots=True)
class RecommendRequest:
    """Ask for the `k` best items for a user.

    `beam_width` None takes the engine's default, at least `k`. `timeout_ms` counts from the request record's
    timestamp. `min_offset`: wait until the user's own event partition has been read up to and including this offset
    (read your own writes); `min_offset_partition`, the partition that it is of, must be the user's. `reply_to`: a topic
    that gets a copy of the response. `tail`: token ids to read between the last event and the next item instead of the
    checkpoint's own tail (None); it costs a small forward.

    `caps`: at most so many items of the answer may have this tag, or of a key that ends in `*`, such as `brand:*`, each
    tag that begins so. Items are taken in their order, and one that would exceed a cap is passed over; where that
    leaves fewer than `k`, the request is decoded with more beams, as far as the engine's config allows it.
    `min_score`: no item of a lower score.

    `temperature`: draw items by chance, without replacement, instead of taking the best: above 1 for more chance, below
    for less. The first is drawn with the probabilities that the levels' softmaxes over legal codes give at this
    temperature, each further one from those that are left; their scores are as ever, and so not in order. `seed`: equal
    seeds draw equally; None takes one that follows from the user's and the request's ids.

    `candidates`: score these items instead of searching for others. The answer holds those that have a score, best
    first, and says of the others why they have none (`RecommendResponse.unscored`). `k` has no meaning then, and beams,
    filters, caps and a threshold must not be given.
    """

    request_id: str
    user_id: str
    k: int = 10
    beam_width: int | None = None
    filter: ItemFilter = NO_FILTER
    timeout_ms: int | None = None
    min_offset: int | None = None
    reply_to: str | None = None
    tail: Sequence[int] | None = None
    caps: Mapping[str, int] | Caps = ()
    min_score: float | None = None
    candidates: Sequence[str] | None = None
    temperature: float | None = None
    seed: int | None = None
    min_offset_partition: int | None = None

    def __post_init__(self) -> None:
        _identifier(InvalidRequest, "request_id", self.request_id)
        _identifier(InvalidRequest, "user_id", self.user_id)
        for name in ("k", "beam_width", "timeout_ms", "min_offset", "min_offset_partition", "seed"):
            value = getattr(self, name)
            if value is not None and type(value) is not int:
                object.__setattr__(self, name, _integer(value))
        if type(self.k) is not int or not 1 <= self.k <= MAX_BEAM_WIDTH:
            raise InvalidRequest(f"k must be an integer from 1 to {MAX_BEAM_WIDTH}, not {_shown(self.k)}")
        if not isinstance(self.filter, ItemFilter):
            raise InvalidRequest(f"filter must be an ItemFilter, not {_shown(self.filter)}")
        width = self.beam_width
        if width is not None and (type(width) is not int or not self.k <= width <= MAX_BEAM_WIDTH):
            raise InvalidRequest(
                f"beam_width must be None or an integer from k ({self.k}) to {MAX_BEAM_WIDTH}, not {_shown(width)}"
            )
        for name in ("timeout_ms", "min_offset"):
            value = getattr(self, name)
            if value is not None and (type(value) is not int or value < 0):
                raise InvalidRequest(f"{name} must be None or an integer of at least 0, not {_shown(value)}")
        number = self.min_offset_partition
        if number is not None and (type(number) is not int or number < 0 or self.min_offset is None):
            expected = "None or an integer of at least 0 beside a min_offset"
            raise InvalidRequest(f"min_offset_partition must be {expected}, not {_shown(number)}")
        if self.reply_to is not None:
            _identifier(InvalidRequest, "reply_to", self.reply_to)
        if self.tail is not None:
            object.__setattr__(self, "tail", _token_ids("tail", self.tail))
        if self.caps != ():
            object.__setattr__(self, "caps", _caps(self.caps))
        least = _number(self.min_score)
        if least is not None:
            # An integer may be too large for a float, and a message for an integer.
            if type(least) not in (int, float) or not -sys.float_info.max <= least <= 0:
                raise InvalidRequest(f"min_score must be None or a log-probability, at most 0, not {_shown(least)}")
            object.__setattr__(self, "min_score", float(least))
        heat = _number(self.temperature)
        if heat is not None:
            if type(heat) not in (int, float) or not MIN_TEMPERATURE <= heat <= MAX_TEMPERATURE:
                expected = f"None or a number from {MIN_TEMPERATURE} to {MAX_TEMPERATURE}"
                raise InvalidRequest(f"temperature must be {expected}, not {_shown(heat)}")
            object.__setattr__(self, "temperature", heat)
        if self.seed is not None and (type(self.seed) is not int or not 0 <= self.seed < 1 << 63 or heat is None):
            raise InvalidRequest(
                f"seed must be None or an integer from 0 to 2^63 - 1 beside a temperature, not {_shown(self.seed)}"
            )
        if self.candidates is not None:
            object.__setattr__(self, "candidates", self._candidates(self.candidates))

    def rows(self, beam_width: int) -> int:
        """That its decode takes, at most, from an engine that gives so many beams to a request that names none."""
        if self.candidates is not None:
            return len(self.candidates)
        return self.beam_width or max(self.k, beam_width)

    def _candidates(self, value: object) -> tuple[str, ...]:
        listed = isinstance(value, Collection) and not isinstance(value, str | bytes | Mapping)
        if not listed or not all(isinstance(item, str) for item in cast("Collection[object]", value)):
            raise InvalidRequest(f"candidates must be a sequence of strings, {_other(value, listed)}")
        distinct = tuple(dict.fromkeys(cast("Collection[str]", value)))
        if not 1 <= len(distinct) <= MAX_CANDIDATES:
            raise InvalidRequest(f"candidates must hold 1 to {MAX_CANDIDATES} items, not {len(distinct)}")
        for item in distinct:
            _identifier(InvalidRequest, "an item of candidates", item)
        others = (self.beam_width, self.caps or None, self.min_score, self.temperature)
        if self.filter != NO_FILTER or others != (None,) * len(others):
            names = "beam_width, filters, caps, min_score and temperature"
            raise InvalidRequest(f"candidates must go without {names}, and one is given")
        return distinct


class Recommendation(NamedTuple):
    """One recommended item. `score` is the beam's accumulated log-probability (see `normalizer`)."""

    item_id: str
    score: float
    sid: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class RecommendResponse:
    """The answer to one request: what was recommended, and what the answer was computed from."""

    request_id: str
    user_id: str
    status: Status
    items: tuple[Recommendation, ...] = ()
    error: str | None = None
    """Stable error code (`XgrError.code`) when `status` is `error`."""
    message: str | None = None
    event_count: int = 0
    """Number of the user's events that the answer saw."""
    event_offset: int = -1
    """Offset of the last event of the user that the answer saw; -1 when there was none or none came from a topic."""
    model_version: str = ""
    catalog_version: str = ""
    cache: CacheState = CacheState.NONE
    stages_ms: Mapping[str, float] = field(default_factory=dict)
    """Time spent in each stage, milliseconds: `wait`, `append`, `decode`, `total`."""
    tail_computed: bool = False
    """Whether a tail of the request's own was computed for it, besides what `cache` says. It counts as `append`."""
    shortfall: Shortfall | None = None
    """Why there are fewer than k items; None: there are k, or the answer is an error, or to `candidates`."""
    unscored: Mapping[str, Unscored] = field(default_factory=dict)
    """The request's `candidates` that have no score, and why."""

    @classmethod
    def failure(cls, request_id: str, user_id: str, error: XgrError) -> RecommendResponse:
        """The response that carries `error`."""
        return cls(request_id, user_id, Status.ERROR, error=error.code, message=str(error))
