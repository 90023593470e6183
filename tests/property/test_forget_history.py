"""A forgotten user stays forgotten, whatever late writers, crashes and compaction do to the changelog.

As in test_replay_history, two workers that both process every event write the changelog, each at its own pace.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from tests.profiles import examples
from tests.property.test_replay_history import PARTITION, compacted, configs, interleaved, restored
from xgr_stream.config import HistoryConfig
from xgr_stream.history import HistoryStore
from xgr_stream.stream import changelog
from xgr_stream.stream.changelog import Entry
from xgr_stream.types import UserEvent

Action = UserEvent | str
"""An event, or the id of a user to forget."""
Actions = Sequence[tuple[int, Action]]


@st.composite
def action_logs(draw: st.DrawFn) -> Actions:
    rng = random.Random(draw(st.integers(0, 2**32)))
    users = [f"user-{i}" for i in range(draw(st.integers(1, 3)))]
    forget_rate = draw(st.sampled_from([0.03, 0.15, 0.5]))
    offset, log = rng.randrange(3), []
    for _ in range(draw(st.integers(0, 70))):
        user = rng.choice(users)
        log.append((offset, user if rng.random() < forget_rate else UserEvent(user, f"item-{rng.randrange(12)}")))
        offset += rng.choice([1, 1, 2, 7])
    return log


def apply_all(store: HistoryStore, log: Actions) -> HistoryStore:
    for offset, action in log:
        if isinstance(action, str):
            store.forget_at(action, partition=PARTITION, offset=offset)
        else:
            store.apply(action, partition=PARTITION, offset=offset)
    return store


def written(log: Actions, config: HistoryConfig, rng: random.Random) -> list[tuple[int, Entry]]:
    """What one worker writes, each with the offset it had reached: tombstones some time after what makes them due."""
    store = HistoryStore(config)
    entries: list[tuple[int, Entry]] = []
    waiting: list[Entry] = []
    for offset, action in log:
        if isinstance(action, str):
            stale = store.forget_at(action, partition=PARTITION, offset=offset)
            if stale is not None:
                entries.append((offset, changelog.forget_entry(action, offset)))
                waiting += changelog.stale_entries(stale)
        else:
            applied = store.apply(action, partition=PARTITION, offset=offset)
            assert applied is not None
            entries.append((offset, changelog.entry_of(action, offset, applied, store)))
            if applied.sealed is not None:
                waiting += changelog.superseded_by(action.user_id, applied.sealed, config, applied.life)
        while waiting and rng.random() < 0.8:
            entries.append((offset, waiting.pop(0)))
    return entries


def contents(store: HistoryStore) -> dict[str, tuple[object, ...]]:
    store.check_integrity()
    found: dict[str, tuple[object, ...]] = {}
    for user in store.users(PARTITION):
        view = store.view(user)
        assert view is not None
        items = [store.item_names[i] for i in view.items.tolist()]
        found[user] = (view.life, view.event_count, view.first_number, view.last_offset, items)
    return found


@given(action_logs(), configs, st.integers(0, 2**32))
@examples(300)
def test_a_cut_compacted_changelog_of_two_writers_holds_nothing_of_a_forgotten_life(
    log: Actions, config: HistoryConfig, seed: int
) -> None:
    rng = random.Random(seed)
    whole = interleaved(written(log, config, rng), written(log, config, rng), rng)
    cut = whole[: rng.randint(0, len(whole))]
    reached = max((offset for offset, _ in cut), default=-1)
    records = compacted([entry for _, entry in cut], rng)

    store, stale = restored(records, config)

    durable = [(offset, action) for offset, action in log if offset <= reached]
    assert contents(store) == contents(apply_all(HistoryStore(config), durable))

    cleaned = {entry.key: entry.value for entry in [*records, *changelog.stale_entries(stale)]}
    again, _ = restored([Entry(*entry) for entry in cleaned.items()], config)
    assert contents(again) == contents(store)
    live = {key: value for key, value in cleaned.items() if value is not None}
    assert live == expected_live(durable, config)

    replay_from = rng.randint(0, reached + 1)
    apply_all(store, [(offset, action) for offset, action in log if offset >= replay_from])
    assert contents(store) == contents(apply_all(HistoryStore(config), log))


def expected_live(log: Actions, config: HistoryConfig) -> dict[bytes, bytes | None]:
    """What a worker that never crashed would have left after compaction."""
    always = random.Random(0)
    always.random = lambda: 0.0  # type: ignore[method-assign]
    left = {entry.key: entry.value for _, entry in written(log, config, always)}
    return {key: value for key, value in left.items() if value is not None}


@given(action_logs(), configs, st.integers(0, 2**32))
@examples(100)
def test_replaying_any_part_in_its_order_changes_nothing(log: Actions, config: HistoryConfig, seed: int) -> None:
    store = apply_all(HistoryStore(config), log)
    before = contents(store)
    start = random.Random(seed).randint(0, len(log))
    for offset, action in log[start:]:
        if isinstance(action, str):
            assert store.forget_at(action, partition=PARTITION, offset=offset) is None
        else:
            assert store.apply(action, partition=PARTITION, offset=offset) is None
    assert contents(store) == before
