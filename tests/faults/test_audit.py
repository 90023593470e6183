"""The audit says nothing of a run that went well, and finds each thing that can go wrong in one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from xgr_stream.cli.faults.audit import Findings, audit_answers, audit_dead_letters, audit_events, audit_histories
from xgr_stream.cli.faults.recompute import audit_items, same_items
from xgr_stream.cli.faults.topics import Written
from xgr_stream.cli.faults.truth import CORRUPT_HEADER, Truth
from xgr_stream.config import EngineConfig, StreamConfig
from xgr_stream.engine import Engine
from xgr_stream.errors import InvalidRequest, MalformedMessage
from xgr_stream.history import SourcePosition
from xgr_stream.stream import changelog, codec, protocol
from xgr_stream.stream.records import Record
from xgr_stream.stream.source_header import source_header
from xgr_stream.testing import tiny_catalog, tiny_model
from xgr_stream.types import Recommendation, RecommendRequest, RecommendResponse

CONFIG = StreamConfig()
TOPICS = CONFIG.topics
USERS = ("user-1", "user-2")
EVENTS_EACH = 40
"""A segment of 32, and some deltas."""


def engine() -> Engine:
    return Engine(tiny_model(), tiny_catalog(), config=EngineConfig(beam_width=8))


class Run:
    """What a run leaves behind when nothing goes wrong: the truth, and the topics' records."""

    def __init__(self) -> None:
        self.truth = Truth()
        self.written = Written([], [], [], [], [], [])
        self._engine = engine()
        for number in range(EVENTS_EACH):
            for user in USERS:
                self._act(user, f"item-{number}")
                if number % 9 == 0:
                    self._ask(user, number)
        self._corrupt()

    def _act(self, user: str, item: str) -> None:
        history, offset = self._engine.history, len(self.written.events)
        event = self.truth.next_event(user, item)
        self._put(self.written.events, TOPICS.events, user, protocol.event_message(event))
        applied = history.apply(event, partition=0, offset=offset)
        assert applied is not None
        self._log(changelog.entry_of(event, offset, applied, history))
        if applied.sealed is not None:
            for entry in changelog.superseded_by(user, applied.sealed, history.config):
                self._log(entry)

    def _ask(self, user: str, number: int) -> None:
        request = RecommendRequest(f"{user}-{number}", user, k=5, min_offset=len(self.written.events) - 1)
        self.truth.requests[request.request_id] = request
        self._put(self.written.requests, TOPICS.requests, user, protocol.request_message(request))
        for _ in range(2):  # it was delivered twice
            self.answer(self._engine.answer([(request, self._engine.history.view(user))])[0])

    def _corrupt(self) -> None:
        self.truth.corrupt = 1
        record = self._put(self.written.events, TOPICS.events, "user-1", {"v": 1}, ((CORRUPT_HEADER, b"no item"),))
        letter = protocol.dead_letter_message(record, MalformedMessage("it has no item"))
        self._put(self.written.dead_letters, TOPICS.dead_letters, "user-1", letter)
        self.truth.refusable.add("faulty")
        self.answer(RecommendResponse.failure("faulty", "user-1", InvalidRequest("k")))

    def answer(self, response: RecommendResponse) -> None:
        self._put(self.written.responses, TOPICS.responses, response.user_id, protocol.response_message(response))

    def _put(
        self,
        log: list[Record],
        topic: str,
        user: str,
        message: protocol.Message,
        headers: tuple[tuple[str, bytes], ...] = (),
    ) -> Record:
        log.append(Record(topic, 0, len(log), user.encode(), codec.encode(message, "msgpack"), 0, headers))
        return log[-1]

    def _log(self, entry: changelog.Entry) -> None:
        self.written.changelog.append(
            Record(TOPICS.changelog, 0, len(self.written.changelog), entry.key, entry.value, 0)
        )

    def change_answers(self, change: Callable[[RecommendResponse], RecommendResponse], *, last: int) -> None:
        """Replace the last answers to a request by changed ones."""
        kept = [record for record in self.written.responses if b"user-1-36" not in (record.value or b"")]
        changed = [record for record in self.written.responses if record not in kept]
        self.written.responses[:] = kept + changed[: len(changed) - last]
        for record in changed[len(changed) - last :]:
            self.answer(change(protocol.parse_response(codec.decode(record.value or b"", 1 << 20))))

    def audited(self) -> Findings:
        findings = Findings()
        offsets = audit_events(self.truth, self.written, findings)
        audit_histories(self.truth, self.written, offsets, CONFIG.history, findings)
        audit_dead_letters(self.truth, self.written, TOPICS, findings)
        answers = audit_answers(self.truth, self.written, offsets, findings)
        audit_items(self.truth, answers, engine(), findings)
        return findings


def _delta(number: int, offset: int, item: str = "item-39", action: str | None = None) -> changelog.Entry:
    value = changelog._pack((changelog.MAJOR, offset, item, action or f"n{number}"))
    return changelog.Entry(changelog.delta_key("user-1", number), value)


def _worse(response: RecommendResponse) -> RecommendResponse:
    return replace(response, items=(response.items[0]._replace(score=-99.0), *response.items[1:]))


def _lose_the_last_delta(run: Run) -> None:
    run.written.changelog[:] = [r for r in run.written.changelog if r.key != changelog.delta_key("user-1", 39)]


def _lose_a_delta_in_between(run: Run) -> None:
    run.written.changelog[:] = [r for r in run.written.changelog if r.key != changelog.delta_key("user-1", 35)]


def _count_an_event_twice(run: Run) -> None:
    run._log(_delta(40, 78))


def _hold_another_item(run: Run) -> None:
    _lose_the_last_delta(run)
    run._log(_delta(39, 78, "item-1"))


def _name_another_offset(run: Run) -> None:
    _lose_the_last_delta(run)
    run._log(_delta(39, 77))


def _lose_an_event_of_the_topic(run: Run) -> None:
    del run.written.events[78]


def _leave_a_request_unanswered(run: Run) -> None:
    run.change_answers(lambda response: replace(response, request_id="user-1-27"), last=2)


def _answer_nobody(run: Run) -> None:
    run.change_answers(lambda response: replace(response, request_id="another's"), last=1)


def _take_a_good_message_for_bad(run: Run) -> None:
    letter = protocol.dead_letter_message(run.written.events[0], MalformedMessage("it is not"))
    run._put(run.written.dead_letters, TOPICS.dead_letters, "user-1", letter)


def _answer_what_is_faulty(run: Run) -> None:
    run.change_answers(lambda response: replace(response, request_id="faulty"), last=1)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (_lose_the_last_delta, "histories lack events: user-1 has 39 of 40"),
        (_lose_a_delta_in_between, "changelogs can't be restored"),
        (_count_an_event_twice, "histories hold events twice: user-1 has 41 of 40"),
        (_hold_another_item, "histories hold other events"),
        (_name_another_offset, "histories name another last offset: user-1 says 77, not 78"),
        (_lose_an_event_of_the_topic, "users whose events in the topic are not those that were written"),
        (_leave_a_request_unanswered, "requests have no answer: user-1-36"),
        (_answer_nobody, "answers are to nobody's request: another's"),
        (_answer_what_is_faulty, "faulty requests were not refused: faulty"),
        (_take_a_good_message_for_bad, "good messages became dead letters"),
        (lambda run: run.written.dead_letters.clear(), "corrupt messages are no dead letters"),
        (
            lambda run: run.change_answers(lambda r: replace(r, event_offset=r.event_offset + 1), last=1),
            "answers name events that are not there: user-1-36",
        ),
        (
            lambda run: run.change_answers(lambda r: replace(r, event_count=36, event_offset=70), last=1),
            "answers came before the event that they were to wait for: user-1-36",
        ),
        (lambda run: run.change_answers(_worse, last=1), "answers that saw the same are not equal: user-1-36"),
        (lambda run: run.change_answers(_worse, last=2), "answers are not the engine's own: user-1-36"),
        (lambda run: run.change_answers(lambda r: replace(r, items=r.items[1:]), last=2), "are not the engine's own"),
        (
            lambda run: run.change_answers(lambda r: replace(r, model_version="other"), last=1),
            "answers name another model or catalog",
        ),
    ],
)
def test_what_goes_wrong_is_found(spoil: Callable[[Run], None], says: str) -> None:
    run = Run()
    spoil(run)
    assert any(says in difference for difference in run.audited().differences), run.audited().differences


def test_a_run_that_went_well_has_no_differences() -> None:
    findings = Run().audited()
    assert findings.differences == []
    assert findings.figures["events in histories"] == 2 * EVENTS_EACH
    assert findings.figures["answers recomputed"] == findings.figures["answers with items"] == 20
    assert findings.figures["of them to wait for an event"] == 20
    assert findings.figures["answers compared with another"] == 10


def _copies(run: Run) -> None:
    """Make the events copies of as many views."""
    events = run.written.events
    run.written.views[:] = [record._replace(topic="views", headers=()) for record in events]
    events[:] = [
        record._replace(headers=(*record.headers, source_header(SourcePosition("views", 0, record.offset))))
        for record in events
    ]


def test_a_copy_that_is_written_again_does_not_count() -> None:
    run = Run()
    _copies(run)
    run.written.events.extend([record._replace(offset=record.offset + 1_000) for record in run.written.events[30:50]])
    findings = run.audited()
    assert findings.differences == []
    assert findings.figures["copies that were written again"] == 20
    assert findings.figures["views"] == len(run.written.views)


def test_an_event_without_a_copy_and_a_copy_that_counts_twice_are_found() -> None:
    run = Run()
    _copies(run)
    del run.written.events[78]
    assert any("users whose events in the topic" in difference for difference in run.audited().differences)
    run = Run()
    _copies(run)
    _count_an_event_twice(run)
    assert "histories hold events twice" in run.audited().differences[0]


def _items(*scored: tuple[str, float]) -> tuple[Recommendation, ...]:
    return tuple(Recommendation(name, score, (0,)) for name, score in scored)


def test_items_are_the_same_up_to_rounding_and_the_order_of_equals() -> None:
    left = _items(("a", -1.0), ("b", -2.0), ("c", -2.00005))
    assert same_items(left, _items(("a", -1.00005), ("c", -2.0), ("b", -2.00005)))
    assert same_items(left, _items(("a", -1.0), ("b", -2.0), ("d", -2.00005)))  # one of equals, cut off at k
    assert not same_items(left, _items(("b", -1.0), ("a", -2.0), ("c", -2.0)))
    assert not same_items(left, _items(("a", -1.1), ("b", -2.0), ("c", -2.0)))
    assert not same_items(left, left[:2])
