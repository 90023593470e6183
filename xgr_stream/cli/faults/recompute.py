"""Each answer against the engine's own, computed once more from the events that the answer says it saw."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

import torch

from xgr_stream.cli.faults.audit import Findings
from xgr_stream.cli.faults.truth import Truth
from xgr_stream.engine import Engine
from xgr_stream.types import Recommendation, RecommendResponse

EPSILON = 1e-4
"""Of float32 scores: matrix products of other row counts round differently."""


def audit_items(truth: Truth, answers: Sequence[RecommendResponse], engine: Engine, findings: Findings) -> None:
    """Answers that saw the same events equal each other, and the engine's own. `engine` must be fresh."""
    torch.set_num_threads(1)  # of such small products; a second one costs more than it gains
    by_user: dict[str, list[RecommendResponse]] = defaultdict(list)
    for answer in answers:
        by_user[answer.user_id].append(answer)
    versions = {(answer.model_version, answer.catalog_version) for answer in answers}
    ours = {(engine.version, engine.catalog.version)}
    findings.differ("answers name another model or catalog", versions - ours)
    wrong: list[str] = []
    for user, theirs in by_user.items():
        theirs.sort(key=lambda answer: answer.event_count)
        for answer, own in _recomputed(truth, user, theirs, engine):
            if not same_items(answer.items, own.items) or answer.status is not own.status:
                wrong.append(f"{answer.request_id} of {user} at {answer.event_count} events")
    findings.differ("answers are not the engine's own", wrong)
    groups: dict[tuple[object, ...], list[RecommendResponse]] = defaultdict(list)
    for answer in answers:
        request = truth.requests[answer.request_id]
        seen = (answer.user_id, answer.event_offset, answer.model_version, answer.catalog_version)
        groups[(*seen, request.k, request.filter)].append(answer)
    unequal = (
        f"{group[0].request_id} and {other.request_id} of {group[0].user_id} at offset {group[0].event_offset}"
        for group in groups.values()
        for other in group[1:]
        if not same_items(group[0].items, other.items)
    )
    findings.differ("answers that saw the same are not equal", unequal)
    findings.figures["answers recomputed"] = len(answers)
    findings.figures["answers compared with another"] = sum(len(g) - 1 for g in groups.values() if len(g) > 1)


def same_items(left: Sequence[Recommendation], right: Sequence[Recommendation]) -> bool:
    """Whether scores are equal within `EPSILON` and order is, except among items that close."""
    if len(left) != len(right):
        return False
    if any(abs(a.score - b.score) > EPSILON for a, b in zip(left, right, strict=True)):
        return False
    return _near(left, right) and _near(right, left)


def _near(left: Sequence[Recommendation], right: Sequence[Recommendation]) -> bool:
    """Whether each item of `left` stands in `right` among equals of its score, or was one of equals at its end."""
    scores = {item.item_id: item.score for item in right}
    last = right[-1].score if right else 0.0
    return all(abs(scores.get(item.item_id, last) - item.score) <= EPSILON for item in left)


def _recomputed(
    truth: Truth, user: str, answers: Sequence[RecommendResponse], engine: Engine
) -> Iterable[tuple[RecommendResponse, RecommendResponse]]:
    """Each answer with the engine's own. The user's events are appended as far as the answers need, in their order."""
    events = truth.events.get(user, [])
    known = 0
    for answer in answers:
        for event in events[known : answer.event_count]:
            engine.history.apply(event)
        known = max(known, min(answer.event_count, len(events)))
        request = truth.requests[answer.request_id]
        yield answer, engine.answer([(request, engine.history.view(user))])[0]
    engine.forget([user])
