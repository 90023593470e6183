"""Holds what the topics hold against what is true. Pure: no I/O; every finding names what, and a few of the ones."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from xgr_stream.cli.faults.topics import Written
from xgr_stream.cli.faults.truth import CORRUPT_HEADER, Truth
from xgr_stream.cli.faults.views import FirstCopies
from xgr_stream.config import HistoryConfig, TopicNames
from xgr_stream.errors import HistoryError
from xgr_stream.history import HistoryStore
from xgr_stream.stream import changelog, codec, protocol
from xgr_stream.stream.records import Record
from xgr_stream.types import RecommendResponse, Status

MAX_BYTES = 1 << 30
MAX_NAMED = 5


@dataclass(slots=True)
class Findings:
    """What was counted, and what is off."""

    figures: dict[str, int] = field(default_factory=dict)
    differences: list[str] = field(default_factory=list)

    def differ(self, what: str, which: Iterable[object]) -> None:
        """Note a difference, if there is any."""
        listed = [str(one) for one in which]
        if listed:
            more = f" and {len(listed) - MAX_NAMED} more" if len(listed) > MAX_NAMED else ""
            self.differences.append(f"{len(listed)} {what}: {'; '.join(listed[:MAX_NAMED])}{more}")


@dataclass(slots=True)
class Offsets:
    """Where each user's events lie in the events topic, in order."""

    by_user: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))


def audit_events(truth: Truth, written: Written, findings: Findings) -> Offsets:
    """The events topic holds each event once and in order, but for copies that were written again: the ground on which
    all else stands."""
    offsets = Offsets()
    found = defaultdict(list)
    counting = list(filter(FirstCopies().counts, written.events))
    if written.views:
        findings.figures["views"] = len(written.views)
        findings.figures["copies that were written again"] = len(written.events) - len(counting)
    for record in counting:
        if _corrupt(record) is None:
            event = protocol.parse_event(codec.decode(record.value, MAX_BYTES), record.key)
            found[event.user_id].append(event)
            offsets.by_user[event.user_id].append(record.offset)
    findings.differ(
        "users whose events in the topic are not those that were written (the broker's or the load's fault)",
        (user for user in truth.events.keys() | found.keys() if truth.events.get(user) != found.get(user)),
    )
    findings.figures["events written"] = truth.num_events
    return offsets


def audit_histories(
    truth: Truth, written: Written, offsets: Offsets, config: HistoryConfig, findings: Findings
) -> None:
    """Every event stands in its user's history exactly once and in order, as the changelog has it."""
    history = HistoryStore(config)
    partitions = sorted({record.partition for record in written.changelog})
    try:
        for record in written.changelog:
            changelog.restore(history, record.partition, record.key, record.value)
        stale = [history.finish_restore(partition) for partition in partitions]
        history.check_integrity()
    except HistoryError as error:
        findings.differ("changelogs can't be restored", [error])
        return
    lost, extra, wrong, late = [], [], [], []
    for user, events in truth.events.items():
        view = history.view(user)
        count = 0 if view is None else view.event_count
        if count < len(events):
            lost.append(f"{user} has {count} of {len(events)}")
        elif count > len(events):
            extra.append(f"{user} has {count} of {len(events)}")
        elif view is not None:
            items = [history.item_names[item] for item in view.items.tolist()]
            actions = [history.action_names[action] for action in view.actions.tolist()]
            kept = events[view.first_number :]
            if (items, actions) != ([event.item_id for event in kept], [event.action for event in kept]):
                wrong.append(user)
            if view.last_offset != offsets.by_user[user][-1]:
                late.append(f"{user} says {view.last_offset}, not {offsets.by_user[user][-1]}")
    findings.differ("histories lack events", lost)
    findings.differ("histories hold events twice", extra)
    findings.differ("histories hold other events, or in another order", wrong)
    findings.differ("histories name another last offset", late)
    findings.differ("users have a history and no events", _users(history, partitions) - truth.events.keys())
    findings.figures["histories"] = history.num_users
    findings.figures["events in histories"] = sum(
        view.event_count for user in truth.events if (view := history.view(user)) is not None
    )
    findings.figures["changelog records"] = len(written.changelog)
    findings.figures["changelog keys left to tombstone"] = sum(len(s.deltas) + len(s.segments) for s in stale)


def audit_answers(truth: Truth, written: Written, offsets: Offsets, findings: Findings) -> list[RecommendResponse]:
    """Every request has an answer, and each answer with items names what it saw truly. Returns those."""
    by_id: dict[str, list[RecommendResponse]] = defaultdict(list)
    for record in written.responses:
        response = protocol.parse_response(codec.decode(record.value, MAX_BYTES))
        by_id[response.request_id].append(response)
    asked = truth.requests.keys() | truth.refusable
    findings.differ("requests have no answer", sorted(asked - by_id.keys()))
    findings.differ("answers are to nobody's request", sorted(by_id.keys() - asked))
    findings.differ(
        "faulty requests were not refused",
        (id for id in truth.refusable for r in by_id.get(id, ()) if r.error != "invalid_request"),
    )
    answered = [response for responses in by_id.values() for response in responses]
    ok = [response for response in answered if response.status is not Status.ERROR]
    findings.differ("answers name events that are not there", _untrue(ok, offsets))
    findings.differ(
        "answers came before the event that they were to wait for",
        (
            f"{response.request_id} saw offset {response.event_offset} and was to wait for {least}"
            for response in ok
            if (request := truth.requests.get(response.request_id)) is not None
            and (least := request.min_offset) is not None
            and response.event_offset < least
        ),
    )
    findings.figures["requests written"] = len(asked)
    findings.figures["requests answered"] = len(asked & by_id.keys())
    findings.figures["answers with items"] = len(ok)
    findings.figures["of them to wait for an event"] = sum(
        (request := truth.requests.get(response.request_id)) is not None and request.min_offset is not None
        for response in ok
    )
    findings.figures["requests answered more than once"] = sum(len(responses) > 1 for responses in by_id.values())
    outcomes = Counter(response.error for response in answered if response.error is not None)
    findings.figures |= {f"answers {code}": count for code, count in sorted(outcomes.items())}
    return [response for response in ok if response.request_id in truth.requests]


def audit_once(written: Written, rewound: Mapping[tuple[str, int], int], findings: Findings) -> None:
    """Of what transactional workers committed, no answer and no dead letter is there twice; of a record that they were
    made to read again there may be a second dead letter. `rewound`: (topic, partition) → from which offset on."""
    answers: defaultdict[str, list[Record]] = defaultdict(list)
    for record in written.responses:
        answers[codec.decode(record.value, MAX_BYTES)["request_id"]].append(record)
    letters = [codec.decode(record.value, MAX_BYTES) for record in written.dead_letters]
    places = Counter((letter["topic"], letter["partition"], letter["offset"]) for letter in letters)
    findings.differ(
        "answers are there more than once",
        (f"{id} at {', '.join(map(_place, records))}" for id, records in answers.items() if len(records) > 1),
    )
    findings.differ(
        "dead letters are there more than once",
        (
            f"{topic}-{number} at {offset} {count} times"
            for (topic, number, offset), count in places.items()
            if count > 1 and offset < rewound.get((topic, number), offset + 1)
        ),
    )


def _place(record: Record) -> str:
    return f"{record.topic}-{record.partition} {record.offset}, {record.timestamp_ms / 1000:.3f} s"


def audit_dead_letters(truth: Truth, written: Written, topics: TopicNames, findings: Findings) -> None:
    """Every message that can't be read is a dead letter, and nothing else is."""
    corrupt = {
        (record.topic, record.partition, record.offset): what
        for record in (*written.views, *written.events, *written.requests)
        if (what := _corrupt(record)) is not None
    }
    letters = [codec.decode(record.value, MAX_BYTES) for record in written.dead_letters]
    places = Counter((letter["topic"], letter["partition"], letter["offset"]) for letter in letters)
    if len(corrupt) != truth.corrupt:
        findings.differ(
            "kinds of corrupt messages are not all in the topics", [f"{len(corrupt)} of {truth.corrupt} messages are"]
        )
    findings.differ(
        "corrupt messages are no dead letters",
        (f"{place[0]}-{place[1]} at {place[2]} ({corrupt[place]})" for place in sorted(corrupt.keys() - places.keys())),
    )
    findings.differ("good messages became dead letters", sorted(places.keys() - corrupt.keys()))
    findings.figures["corrupt messages"] = len(corrupt)
    findings.figures["dead letters"] = len(letters)


def _untrue(responses: Sequence[RecommendResponse], offsets: Offsets) -> Iterable[str]:
    for response in responses:
        own = offsets.by_user.get(response.user_id, [])
        count = response.event_count
        there = -1 if count == 0 else own[count - 1] if count <= len(own) else None
        if there != response.event_offset:
            yield f"{response.request_id} saw {count} events up to offset {response.event_offset}"


def _users(history: HistoryStore, partitions: Iterable[int]) -> set[str]:
    return {user for partition in partitions for user in history.users(partition)}


def _corrupt(record: Record) -> str | None:
    return next((value.decode() for name, value in record.headers if name == CORRUPT_HEADER), None)
