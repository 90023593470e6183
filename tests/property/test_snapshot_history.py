"""A snapshot and what the changelog got after it make the same history as the whole changelog.

Two workers write the changelog, as in test_replay_history. One takes a snapshot at some event, at a position of the
changelog that it had before; later the log is compacted, and both are read back.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.profiles import examples
from tests.property.test_forget_history import Actions, action_logs, apply_all, contents, written
from tests.property.test_replay_history import PARTITION, compacted, configs, interleaved
from xgr_stream.config import HistoryConfig
from xgr_stream.history import HistoryStore
from xgr_stream.history.packed import Numbering
from xgr_stream.history.snapshot import Snapshot, SnapshotWriter, Source
from xgr_stream.stream import changelog
from xgr_stream.stream.changelog import Entry


def through_a_file(store: HistoryStore, path: Path) -> HistoryStore:
    """A store that has begun to restore from a snapshot of this one."""
    config = store.config
    writer = SnapshotWriter(path)
    for user in store.users(PARTITION):
        view = store.view(user)
        assert view is not None
        writer.add([view])
    source = Source("log", PARTITION, b"", 0, 0, config.keep_events, config.segment_events)
    writer.finish(source, store, [], store.forgotten(PARTITION), store.watermarks(PARTITION))
    writer.publish()
    snapshot, other = Snapshot(path), HistoryStore(config)
    numbering = Numbering.of(snapshot.item_numbers, other.item_names.add_all(snapshot.item_names), [])
    other.restoring(PARTITION).begin_with(list(snapshot.users(numbering)), snapshot.forgotten, snapshot.watermarks)
    snapshot.close()
    return other


@given(action_logs(), configs, st.integers(0, 2**32))
@examples(200)
def test_a_snapshot_shortens_the_changelog(
    tmp_path_factory: pytest.TempPathFactory, log: Actions, config: HistoryConfig, seed: int
) -> None:
    rng = random.Random(seed)
    count = rng.randint(0, len(log))
    seen = log[count - 1][0] if count else -1
    taken = apply_all(HistoryStore(config), log[:count])
    whole = interleaved(written(log, config, rng), written(log, config, rng), rng)
    # Published only when all that it holds is durable; its position was read when nothing beyond it was.
    durable_at = next((i + 1 for i, (offset, _) in enumerate(whole) if offset >= seen), len(whole))
    cut = whole[: rng.randint(durable_at, len(whole))]
    beyond = next((i for i, (offset, _) in enumerate(cut) if offset > seen), len(cut))
    position = rng.randint(0, beyond)
    reached = max((offset for offset, _ in cut), default=-1)
    numbered = list(enumerate(entry for _, entry in cut))
    kept = _compacted(numbered, rng)

    store = through_a_file(taken, tmp_path_factory.mktemp("snapshot") / "s")
    for at, entry in kept:
        if at >= position:
            changelog.restore(store, PARTITION, *entry)
    store.finish_restore(PARTITION)

    durable = [(offset, action) for offset, action in log if offset <= max(reached, seen)]
    assert contents(store) == contents(apply_all(HistoryStore(config), durable))
    apply_all(store, [(offset, action) for offset, action in log if offset > seen])
    assert contents(store) == contents(apply_all(HistoryStore(config), log))


def _compacted(log: list[tuple[int, Entry]], rng: random.Random) -> list[tuple[int, Entry]]:
    """`compacted`, with each record's offset."""
    places = {id(entry): at for at, entry in log}
    return [(places[id(entry)], entry) for entry in compacted([entry for _, entry in log], rng)]
