"""Replaying any part of the event topic changes nothing, and a history survives whatever happens to its changelog.

The changelog of these tests is written by two workers that both process every event, each at its own pace: that is
what a zombie and its successor do, and every cut of the log is a crash. Then it is compacted at random.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence

from hypothesis import given
from hypothesis import strategies as st

from tests.profiles import examples
from xgr_stream.config import HistoryConfig
from xgr_stream.history import HistoryStore, Stale
from xgr_stream.stream import changelog
from xgr_stream.stream.changelog import Entry
from xgr_stream.types import UserEvent

PARTITION = 3

Events = Sequence[tuple[int, UserEvent]]
Log = list[Entry]

configs = st.builds(HistoryConfig, keep_events=st.integers(1, 14), segment_events=st.integers(1, 6))


@st.composite
def event_logs(draw: st.DrawFn) -> Events:
    """Events of a few users, at rising offsets with holes."""
    rng = random.Random(draw(st.integers(0, 2**32)))
    users = [f"user-{i}" for i in range(draw(st.integers(1, 4)))]
    offset, events = rng.randrange(5), []
    for _ in range(draw(st.integers(0, 90))):
        action = rng.choice([None, None, "view", "buy"])
        events.append((offset, UserEvent(rng.choice(users), f"item-{rng.randrange(12)}", action)))
        offset += rng.choice([1, 1, 1, 2, 7])
    return events


def apply_all(store: HistoryStore, events: Events) -> HistoryStore:
    for offset, event in events:
        store.apply(event, partition=PARTITION, offset=offset)
    return store


def written(events: Events, config: HistoryConfig, rng: random.Random) -> list[tuple[int, Entry]]:
    """What one worker writes, each with the offset it had reached: tombstones some time after their segment."""
    store = HistoryStore(config)
    log: list[tuple[int, Entry]] = []
    waiting: list[Entry] = []
    for offset, event in events:
        applied = store.apply(event, partition=PARTITION, offset=offset)
        assert applied is not None
        log.append((offset, changelog.entry_of(event, offset, applied, store)))
        if applied.sealed is not None:
            waiting += changelog.superseded_by(event.user_id, applied.sealed, config)
        while waiting and rng.random() < 0.8:
            log.append((offset, waiting.pop(0)))
    return log


def interleaved(first: list, second: list, rng: random.Random) -> list:
    """Both, each in its own order."""
    first, second, merged = list(first), list(second), []
    while first or second:
        source = first if first and (not second or rng.random() < 0.5) else second
        run = rng.randrange(1, 12)
        merged += source[:run]
        del source[:run]
    return merged


def compacted(log: Log, rng: random.Random) -> Log:
    """Some of what a later record of the same key supersedes is gone, and some tombstones that supersede nothing."""
    last = {entry.key: i for i, entry in enumerate(log)}
    kept = [entry for i, entry in enumerate(log) if last[entry.key] == i or rng.random() < 0.4]
    times = {key: sum(entry.key == key for entry in kept) for key in last}
    return [entry for entry in kept if entry.value is not None or times[entry.key] > 1 or rng.random() < 0.5]


def restored(log: Iterable[Entry], config: HistoryConfig) -> tuple[HistoryStore, Stale]:
    store = HistoryStore(config)
    for entry in log:
        changelog.restore(store, PARTITION, *entry)
    return store, store.finish_restore(PARTITION)


def contents(store: HistoryStore) -> dict[str, tuple[object, ...]]:
    store.check_integrity()
    found: dict[str, tuple[object, ...]] = {}
    for user in store.users(PARTITION):
        view = store.view(user)
        assert view is not None
        actions = [store.action_names[a] if a >= 0 else None for a in view.actions.tolist()]
        items = [store.item_names[i] for i in view.items.tolist()]
        found[user] = (view.event_count, view.first_number, view.last_offset, items, actions)
    return found


@given(event_logs(), configs, st.integers(0, 2**32))
@examples(200)
def test_a_cut_compacted_changelog_of_two_writers_restores_the_same_history(
    events: Events, config: HistoryConfig, seed: int
) -> None:
    rng = random.Random(seed)
    whole = interleaved(written(events, config, rng), written(events, config, rng), rng)
    cut = whole[: rng.randint(0, len(whole))]
    reached = max((offset for offset, _ in cut), default=-1)
    log = compacted([entry for _, entry in cut], rng)

    store, stale = restored(log, config)

    durable = [(offset, event) for offset, event in events if offset <= reached]
    assert contents(store) == contents(apply_all(HistoryStore(config), durable))
    assert store.last_offset(PARTITION) == max((offset for offset, _ in durable), default=-1)

    again, still_stale = restored([*log, *changelog.stale_entries(stale)], config)
    assert contents(again) == contents(store)
    assert still_stale.deltas <= stale.deltas
    assert still_stale.segments <= stale.segments

    replay_from = rng.randint(0, reached + 1)
    apply_all(store, [(offset, event) for offset, event in events if offset >= replay_from])
    assert contents(store) == contents(apply_all(HistoryStore(config), events))


@given(event_logs(), configs, st.integers(0, 2**32))
@examples(100)
def test_replaying_any_part_of_the_events_changes_nothing(events: Events, config: HistoryConfig, seed: int) -> None:
    rng = random.Random(seed)
    store = apply_all(HistoryStore(config), events)
    before = contents(store)
    replayed = [entry for entry in events if rng.random() < 0.5]
    rng.shuffle(replayed)
    for offset, event in replayed:
        assert store.apply(event, partition=PARTITION, offset=offset) is None
    assert contents(store) == before


@given(event_logs(), configs)
@examples(50)
def test_the_changelog_of_a_steady_worker_holds_each_event_once(events: Events, config: HistoryConfig) -> None:
    always = random.Random(0)
    always.random = lambda: 0.0  # type: ignore[method-assign]
    log = [entry for _, entry in written(events, config, always)]
    live = {entry.key: entry for entry in log}
    left = [entry for entry in live.values() if entry.value is not None]
    store = apply_all(HistoryStore(config), events)
    per_user = sum(
        count // config.segment_events - first // config.segment_events + count % config.segment_events
        for count, first, *_ in contents(store).values()
    )
    assert len(left) == per_user
