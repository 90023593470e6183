"""Snapshots: what is written is read back, and nothing else is ever believed."""

from __future__ import annotations

import os
import random
import zlib
from collections.abc import Callable
from pathlib import Path

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xgr_stream.config import HistoryConfig
from xgr_stream.history import HistoryStore, SourcePosition
from xgr_stream.history import snapshot as snapshots
from xgr_stream.history.packed import Numbering
from xgr_stream.history.snapshot import Snapshot, SnapshotWriter, Source, Unusable
from xgr_stream.types import UserEvent

CONFIG = HistoryConfig(keep_events=8, segment_events=4)
PARTITION = 2
Contents = dict[str, tuple[object, ...]]


def filled(seed: int, *, users: int = 7, events: int = 90, actions: bool = True) -> HistoryStore:
    rng = random.Random(seed)
    store = HistoryStore(CONFIG)
    for offset in range(0, 3 * events, 3):
        user = f"user-{rng.randrange(users)}é{'😀' * rng.randrange(3)}"
        action = rng.choice([None, "view", "buy"]) if actions else None
        store.apply(UserEvent(user, f"item-{rng.randrange(50)}", action), partition=PARTITION, offset=offset)
        if rng.random() < 0.2:
            source = SourcePosition("views", rng.randrange(3), offset)
            store.add_copy(user, "item-1", None, PARTITION, offset + 1, source)
        if rng.random() < 0.03:
            store.forget_at(user, partition=PARTITION, offset=offset + 2)
    return store


def write(store: HistoryStore, path: Path, *, chunk: int = 3) -> None:
    source = Source("log", PARTITION, b"anchor", 3, 77, CONFIG.keep_events, CONFIG.segment_events)
    writer = SnapshotWriter(path)
    ids = store.users(PARTITION)
    for start in range(0, len(ids), chunk):
        writer.add([view for user in ids[start : start + chunk] if (view := store.view(user)) is not None])
    actions = [store.action_names[i] for i in range(len(store.action_names))]
    writer.finish(source, store, actions, store.forgotten(PARTITION), store.watermarks(PARTITION))
    writer.publish()
    writer.abandon()


def read(path: Path, store: HistoryStore) -> HistoryStore:
    snapshot = Snapshot(path)
    try:
        items = store.item_names.add_all(snapshot.item_names)
        numbering = Numbering.of(snapshot.item_numbers, items, [store.add_action(a) for a in snapshot.action_names])
        packed = list(snapshot.users(numbering))
    finally:
        snapshot.close()
    store.restoring(PARTITION).begin_with(packed, snapshot.forgotten, snapshot.watermarks)
    return store


def contents(store: HistoryStore) -> Contents:
    found: Contents = {}
    for user in store.user_ids():
        view = store.view(user)
        assert view is not None
        actions = [store.action_names[a] if a >= 0 else None for a in view.actions.tolist()]
        items = [store.item_names[i] for i in view.items.tolist()]
        found[user] = (view.event_count, view.first_number, view.last_offset, view.life, items, actions)
    return found


@given(st.integers(0, 2**32), st.booleans(), st.booleans())
@settings(deadline=None, max_examples=60)
def test_what_is_written_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, seed: int, actions: bool, renumbered: bool
) -> None:
    path = tmp_path_factory.mktemp("snapshot") / "s"
    store = filled(seed, actions=actions)
    write(store, path)
    other = HistoryStore(CONFIG)
    if renumbered:  # names have other numbers in the process that reads
        other.item_names.add_all([f"item-{i}" for i in range(60, 20, -1)])
        other.add_action("buy")
    read(path, other)
    recent = other.restoring(PARTITION).recent(3)
    assert recent == store.users(PARTITION)[:3]
    other.finish_restore(PARTITION)
    assert (other.num_users, other.num_events) == (store.num_users, store.num_events)
    assert other.forgotten(PARTITION) == store.forgotten(PARTITION)
    assert other.watermarks(PARTITION) == store.watermarks(PARTITION)
    offsets = [store.user_offset(user) for user in store.user_ids()]
    assert other.last_offset(PARTITION) == max([*offsets, *store.forgotten(PARTITION).values()])
    assert contents(other) == contents(store)
    other.check_integrity()


def test_a_snapshot_of_a_release_without_watermarks_is_read(tmp_path: Path) -> None:
    write(filled(3), tmp_path / "s")
    data = (tmp_path / "s").read_bytes()
    length, _, magic = snapshots._TRAILER.unpack(data[-snapshots._TRAILER.size :])
    end = len(data) - snapshots._TRAILER.size
    footer = msgpack.unpackb(data[end - length : end], strict_map_key=False)
    del footer["watermarks"]
    packed = msgpack.packb(footer)
    trailer = snapshots._TRAILER.pack(len(packed), zlib.crc32(packed), magic)
    (tmp_path / "s").write_bytes(data[: end - length] + packed + trailer)
    other = read(tmp_path / "s", HistoryStore(CONFIG))
    other.finish_restore(PARTITION)
    assert (contents(other), other.watermarks(PARTITION)) == (contents(filled(3)), [])


def test_users_are_unpacked_when_they_are_needed_and_in_the_background(tmp_path: Path) -> None:
    store = filled(1, users=12)
    write(store, tmp_path / "s")
    other = read(tmp_path / "s", HistoryStore(CONFIG))
    other.finish_restore(PARTITION)
    user = store.users(PARTITION)[0]
    applied = other.apply(UserEvent(user, "item-new"), partition=PARTITION, offset=1_000)
    store.apply(UserEvent(user, "item-new"), partition=PARTITION, offset=1_000)
    assert applied is not None
    assert other.num_events == store.num_events
    while other.unpack_some():
        other.check_integrity()
    assert contents(other) == contents(store)
    assert sorted(other.drop(PARTITION)) == sorted(store.user_ids())
    assert (other.num_users, other.num_events, other.memory_bytes) == (0, 0, 0)


def test_a_partition_is_dropped_without_being_unpacked(tmp_path: Path) -> None:
    write(filled(2), tmp_path / "s")
    other = read(tmp_path / "s", HistoryStore(CONFIG))
    other.finish_restore(PARTITION)
    other.drop(PARTITION)
    assert (other.num_users, other.num_events, other.memory_bytes) == (0, 0, 0)
    assert not other.unpack_some()
    other.check_integrity()


@given(st.integers(0, 2**32), st.data())
@settings(deadline=None, max_examples=150)
def test_whatever_is_damaged_is_never_believed(
    tmp_path_factory: pytest.TempPathFactory, seed: int, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("snapshot") / "s"
    write(filled(seed % 5), path)
    whole = bytearray(path.read_bytes())
    if data.draw(st.booleans()):
        at = data.draw(st.integers(len(snapshots.MAGIC), len(whole) - 1))
        whole[at] ^= data.draw(st.integers(1, 255))
    else:
        del whole[data.draw(st.integers(0, len(whole) - 1)) :]
    path.write_bytes(whole)
    with pytest.raises(Unusable) as error:
        read(path, HistoryStore(CONFIG))
    assert error.value.reason == "damaged"


def test_what_can_t_be_opened_is_no_snapshot(tmp_path: Path) -> None:
    """As a file that is another user's."""
    with pytest.raises(Unusable, match="it can't be opened") as error:
        Snapshot(tmp_path)
    assert error.value.reason == "damaged"
    with pytest.raises(FileNotFoundError):
        Snapshot(tmp_path / "none")


@given(st.binary(max_size=200))
@settings(max_examples=100, deadline=None)
def test_any_bytes_are_no_snapshot(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.mktemp("snapshot") / "s"
    path.write_bytes(data)
    with pytest.raises(Unusable):
        Snapshot(path)


def rewrite_footer(path: Path, change: Callable[[dict[str, object]], object]) -> None:
    """A footer with a right checksum, as a release with other ideas might write it."""
    data = path.read_bytes()
    length, _, magic = snapshots._TRAILER.unpack(data[-snapshots._TRAILER.size :])
    start = len(data) - snapshots._TRAILER.size - length
    footer = msgpack.unpackb(data[start : start + length], strict_map_key=False)
    packed: bytes = msgpack.packb(change(footer))
    trailer = snapshots._TRAILER.pack(len(packed), zlib.crc32(packed), magic)
    path.write_bytes(data[:start] + packed + trailer)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda footer: {**footer, "format": 2}, "newer"),
        (lambda footer: {"format": 1}, "damaged"),
        (lambda footer: [1, 2], "damaged"),
        (lambda footer: {**footer, "chunks": 7}, "damaged"),
        (lambda footer: {**footer, "item_names": footer["item_names"][1:]}, "damaged"),
        (lambda footer: {**footer, "source": {"topic": "log"}}, "damaged"),
    ],
)
def test_footers_of_others(tmp_path: Path, change: Callable[[dict[str, object]], object], reason: str) -> None:
    write(filled(3), tmp_path / "s")
    rewrite_footer(tmp_path / "s", change)
    with pytest.raises(Unusable) as error:
        Snapshot(tmp_path / "s")
    assert error.value.reason == reason


def test_a_snapshot_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    write(filled(4), tmp_path / "s")
    before = (tmp_path / "s").read_bytes()
    writer = SnapshotWriter(tmp_path / "s")
    store = filled(5)
    writer.add([view for user in store.user_ids() if (view := store.view(user)) is not None])
    writer.abandon()
    assert (tmp_path / "s").read_bytes() == before
    assert list(tmp_path.iterdir()) == [tmp_path / "s"]
    assert (tmp_path / "s").stat().st_mode & 0o077 == 0


def test_nothing_is_left_on_a_full_disk(tmp_path: Path) -> None:
    writer = SnapshotWriter(tmp_path / "s")
    full = os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, writer._file.fileno())
    os.close(full)
    store = filled(6)
    writer.add([view for user in store.user_ids() if (view := store.view(user)) is not None])
    with pytest.raises(OSError, match="No space left"):
        writer.finish(Source("log", PARTITION, b"anchor", 3, 77, 8, 4), store, [], {}, [])
    writer.abandon()
    assert list(tmp_path.iterdir()) == []
