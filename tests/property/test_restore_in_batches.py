"""Changelog records fed many at a time make the same history, and name the same superfluous keys, as one by one.

The logs are those of test_replay_history and test_forget_history: of two workers, cut, compacted, with late records,
tombstones and lives. They are split at random, with settling in between; some records are written as a newer minor
release would, some strings are longer than the batch reader looks at itself.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from unittest import mock

import msgpack
from hypothesis import given
from hypothesis import strategies as st

from tests.profiles import examples
from tests.property import test_forget_history as forgetting
from tests.property.test_replay_history import (
    PARTITION,
    Events,
    apply_all,
    compacted,
    configs,
    contents,
    event_logs,
    interleaved,
    written,
)
from xgr_stream.config import HistoryConfig
from xgr_stream.errors import HistoryError
from xgr_stream.history import HistoryStore, Stale, rows
from xgr_stream.stream import changelog
from xgr_stream.stream.changelog import Entry
from xgr_stream.stream.changelog_batch import BatchReader


def one_by_one(log: list[Entry], config: HistoryConfig) -> tuple[HistoryStore, Stale]:
    store = HistoryStore(config)
    for entry in log:
        changelog.restore(store, PARTITION, *entry)
    return store, store.finish_restore(PARTITION)


def in_batches(log: list[Entry], config: HistoryConfig, rng: random.Random) -> tuple[HistoryStore, Stale]:
    """Sometimes rows are settled now and then, as they are when there are too many."""
    store = HistoryStore(config)
    reader = BatchReader(store)
    rest = list(log)
    with mock.patch.object(rows, "MAX_BYTES", rng.choice([0, 1_000, rows.MAX_BYTES])):
        while rest:
            size = rng.choice([1, 3, 20, len(rest)])
            reader.feed(PARTITION, rest[:size])
            del rest[:size]
            if store.restoring(PARTITION).full and rng.random() < 0.5:
                for _ in store.restoring(PARTITION).settle():
                    """In steps."""
                assert not store.restoring(PARTITION).full
    return store, store.finish_restore(PARTITION)


def newer(entry: Entry, rng: random.Random) -> Entry:
    """As a later minor release may write it: with one element more."""
    if entry.value is None or rng.random() > 0.1:
        return entry
    fields = msgpack.unpackb(entry.value)
    value: bytes = msgpack.packb([*fields, *([None] if len(fields) == 4 else []), "new"])
    return Entry(entry.key, value)


LONGER = ["", "x" * 20, "x" * 36, "ü" * 12, "x" * 50, "x" * 240]
"""Ends of item ids: short strings, those of eight bits of length, those that are not looked up by their bytes."""


@given(event_logs(), configs, st.integers(0, 2**32))
@examples(300)
def test_batches_restore_what_single_records_do(events: Events, config: HistoryConfig, seed: int) -> None:
    rng = random.Random(seed)
    events = [
        (offset, replace(event, item_id=event.item_id + LONGER[offset % rng.randint(1, 6)])) for offset, event in events
    ]
    whole = interleaved(written(events, config, rng), written(events, config, rng), rng)
    log = compacted([entry for _, entry in whole[: rng.randint(0, len(whole))]], rng)
    log = [newer(entry, rng) for entry in log]

    store, stale = in_batches(log, config, rng)

    expected, expected_stale = one_by_one(log, config)
    assert contents(store) == contents(expected)
    assert stale == expected_stale
    assert store.last_offset(PARTITION) == expected.last_offset(PARTITION)
    assert (store.num_users, store.num_events) == (expected.num_users, expected.num_events)


@given(forgetting.action_logs(), configs, st.integers(0, 2**32))
@examples(300)
def test_batches_forget_what_single_records_do(log: forgetting.Actions, config: HistoryConfig, seed: int) -> None:
    rng = random.Random(seed)
    whole = interleaved(forgetting.written(log, config, rng), forgetting.written(log, config, rng), rng)
    records = compacted([entry for _, entry in whole[: rng.randint(0, len(whole))]], rng)

    store, stale = in_batches(records, config, rng)

    expected, expected_stale = one_by_one(records, config)
    assert forgetting.contents(store) == forgetting.contents(expected)
    assert stale == expected_stale
    assert store.forgotten(PARTITION) == expected.forgotten(PARTITION)


@given(event_logs(), configs, st.integers(0, 2**32))
@examples(300)
def test_what_a_steady_worker_leaves_is_put_together_without_going_through_it(
    events: Events, config: HistoryConfig, seed: int
) -> None:
    always = random.Random(0)
    always.random = lambda: 0.0  # type: ignore[method-assign]
    live = {entry.key: entry for _, entry in written(events, config, always)}
    store = HistoryStore(config)
    reader, restoring = BatchReader(store), store.restoring(PARTITION)
    reader.feed(PARTITION, [entry for entry in live.values() if entry.value is not None])
    for _ in restoring.settle():
        """To the end."""
    assert sum(len(packed.ids) for packed in restoring.still_packed()) == len({event.user_id for _, event in events})
    offsets = [offset for packed in restoring.still_packed() for offset in packed.last_offsets.tolist()]
    assert offsets == sorted(offsets, reverse=True)
    assert store.finish_restore(PARTITION) == Stale()
    assert contents(store) == contents(apply_all(HistoryStore(config), events))


@given(event_logs(), configs, st.integers(0, 2**32), st.binary(max_size=12))
@examples(300)
def test_a_record_that_is_not_ours_is_refused_among_others_as_alone(
    events: Events, config: HistoryConfig, seed: int, junk: bytes
) -> None:
    """Cut, lengthened, or with bytes of anything in it."""
    rng = random.Random(seed)
    log = [entry for _, entry in written(events, config, rng)]
    if not log:
        return
    at = rng.randrange(len(log))
    key, value = log[at]
    if rng.random() < 0.5:
        key = spoiled(key, junk, rng)
    else:
        value = spoiled(value or b"", junk, rng)
    log[at] = Entry(key, value)

    def outcome(restored: Callable[[], tuple[HistoryStore, Stale]]) -> object:
        try:
            store, stale = restored()
        except HistoryError as error:  # which of several users with gaps it names depends on their order
            return "gap" if "lacks events" in str(error) else str(error)
        return contents(store), stale

    assert outcome(lambda: in_batches(log, config, rng)) == outcome(lambda: one_by_one(log, config))


def spoiled(data: bytes, junk: bytes, rng: random.Random) -> bytes:
    start, end = sorted((rng.randint(0, len(data)), rng.randint(0, len(data))))
    return data[:start] + junk + data[end:]
