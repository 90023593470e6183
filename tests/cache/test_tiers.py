"""Host memory and a file behind the device's: what goes where, and what comes back."""

import gc
import os
import stat
import threading
import time
import weakref
from types import SimpleNamespace

import numpy as np
import pytest

from tests.cache import operations
from tests.cache.operations import FILE_PAGES, HOST_PAGES, Operations
from xgr_stream.cache import FileTier, PageFile, page_file
from xgr_stream.errors import ConfigError


@pytest.fixture
def tiers(tmp_path):
    made = Operations(0, str(tmp_path))
    yield made
    made.end()


def settle(tiers: Operations) -> None:
    tiers.settle()
    tiers.host.settle()


def demote(tiers: Operations, *users: str) -> None:
    """Turn these users out, with copies."""
    for user_id in users:
        demotion = tiers.host.begin(tiers.cache.touch(user_id))
        if demotion is not None:
            tiers.demote(demotion)
        tiers.settle()
        tiers.cache.evict(user_id)


def to_file(tiers: Operations, user_id: str) -> None:
    """Have the user's copy written to the file."""
    tiers.compute(user_id, 9)
    demote(tiers, user_id)
    others = 0
    while user_id not in tiers.file:
        others += 1
        tiers.compute(f"other-{others}", 14)
        for _ in range(20):
            tiers.cache.worth.seen(f"other-{others}")
        demote(tiers, f"other-{others}")
        tiers.host.tend()
        tiers.host.settle()
        assert others < 9
    assert tiers.host.get(user_id) is None
    tiers.cache.drop([f"other-{number}" for number in range(1, others + 1)])


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("failures", [0.0, 0.3])
def test_any_sequence_of_operations_leaves_the_right_bytes_and_nothing_behind(tmp_path, seed, failures):
    done = operations.run(700, seed, str(tmp_path), check_every=1, failures=failures)
    assert done.counts["warm"]
    assert done.counts["host"]
    assert done.counts["demoted"]
    assert done.file.written


def test_a_user_who_is_turned_out_comes_back_as_they_were(tiers):
    tiers.compute("user-0", 9)
    demote(tiers, "user-0")
    assert "user-0" not in tiers.cache
    assert tiers.have("user-0") == "host"
    tiers.settle()
    tiers.check("user-0")


def test_who_is_not_among_the_least_worthy_is_not_copied(tiers):
    for user_id in ("user-0", "user-1"):
        tiers.compute(user_id, 14)
        tiers.cache.touch(user_id)
    for _ in range(9):
        tiers.cache.touch("user-1")
    tiers.tend("")
    assert [pending.user_id for pending in tiers.pending] == []  # 16 of 24 pages are free
    for user_id in ("user-2", "user-3"):
        tiers.compute(user_id, 14)
        tiers.cache.touch(user_id)
        tiers.cache.touch(user_id)
    tiers.compute("user-4", 14)
    tiers.cache.touch("user-4")
    tiers.tend("")
    tiers.settle()
    assert "user-0" in tiers.host
    assert "user-1" not in tiers.host
    assert "user-0" in tiers.cache  # only its copy is made ahead


def test_of_a_copied_user_only_the_pages_that_changed_are_copied_again(tiers):
    tiers.compute("user-0", 9)
    assert tiers.host.begin(tiers.cache.get("user-0")) is not None
    tiers.cache.drop(["user-0"])  # while the copy is made
    assert "user-0" not in tiers.host
    tiers.compute("user-0", 9)
    demote(tiers, "user-0")
    assert tiers.have("user-0") == "host"
    tiers.settle()
    assert tiers.host.begin(tiers.cache.get("user-0")) is None, "it has not changed"
    tiers.compute("user-0", 6)
    demotion = tiers.host.begin(tiers.cache.get("user-0"))
    assert demotion.first_page == 2  # 9 tokens fill two pages of 4
    tiers.demote(demotion)
    tiers.settle()
    tiers.cache.evict("user-0")
    assert tiers.have("user-0") == "host"
    tiers.settle()
    tiers.check("user-0")
    # The copy whose making was given up is given back at last.
    gone = next(iter(tiers.host._gone))
    tiers.host.release(gone)


def test_a_copy_of_what_was_computed_anew_is_of_no_use(tiers):
    tiers.compute("user-0", 9)
    demote(tiers, "user-0")
    tiers.compute("user-0", 9)
    assert "user-0" not in tiers.host


def test_spare_copies_make_room_before_those_of_users_who_have_nothing_else(tiers):
    for user_id in ("spare", "alone"):
        tiers.compute(user_id, 14)
        demote(tiers, user_id)
    tiers.have("spare")
    tiers.settle()
    tiers.cache.touch("spare")
    for number in range(3):
        tiers.compute(f"new-{number}", 14)
        demote(tiers, f"new-{number}")
    assert "spare" not in tiers.host
    assert "spare" in tiers.cache
    tiers.cache.drop(["spare", "alone", *(f"new-{number}" for number in range(3))])


def test_who_is_worth_less_than_those_in_host_memory_is_dropped(tiers):
    for number in range(HOST_PAGES // 4):
        tiers.compute(f"kept-{number}", 14)
        for _ in range(9):
            tiers.cache.touch(f"kept-{number}")
        demote(tiers, f"kept-{number}")
    tiers.compute("rare", 14)
    assert tiers.host.begin(tiers.cache.get("rare")) is None
    tiers.cache.drop(["rare", *(f"kept-{number}" for number in range(HOST_PAGES // 4))])


def test_a_copy_that_is_refused_costs_nobody_theirs(tiers, monkeypatch):
    """It is worth more than one copy there, which has less room than it takes."""
    kept = [f"kept-{number}" for number in range(HOST_PAGES // 4 - 1)]
    worths = {"cheap": 1.0, "middling": 5.0}
    monkeypatch.setattr(tiers.host, "_worth_of", lambda prefix: worths.get(prefix.user_id, 9.0))
    for user_id in ("cheap", *kept):
        tiers.compute(user_id, 14)
        demote(tiers, user_id)
    tiers.compute("middling", 30)
    assert tiers.host.begin(tiers.cache.get("middling")) is None
    assert all(user_id in tiers.host for user_id in ("cheap", *kept))
    tiers.cache.drop(["middling", "cheap", *kept])


def test_so_with_the_file(tmp_path):
    arena = SimpleNamespace(views=lambda runs: [memoryview(bytes(16 * (stop - first))) for first, stop in runs])
    tier = FileTier(PageFile(str(tmp_path), 6, 16))

    def write(user_id, pages, worth):
        begun = tier.write(SimpleNamespace(user_id=user_id), arena, [(0, pages)], worth, lambda done: None)
        tier.file.reap(wait=True)
        return begun

    for user_id, worth in (("cheap", 1.0), ("cheaper", 0.5), ("kept", 9.0)):
        assert write(user_id, 2, worth)
    assert not write("middling", 6, 5.0)
    assert all(user_id in tier for user_id in ("cheap", "cheaper", "kept"))
    assert write("middling", 4, 5.0)
    assert not any(user_id in tier for user_id in ("cheap", "cheaper"))


def test_an_event_brings_a_user_back_from_the_file(tiers):
    to_file(tiers, "user-0")
    tiers.expect("user-0")
    assert tiers.host.is_coming("user-0")
    tiers.host.settle()
    assert "user-0" not in tiers.file
    assert tiers.have("user-0") == "host"
    tiers.settle()
    tiers.check("user-0")


@pytest.mark.parametrize("what", ["damaged", "cut off", "forgotten meanwhile"])
def test_a_copy_that_can_not_be_read_is_no_copy(tiers, what):
    to_file(tiers, "user-0")
    if what == "damaged":
        os.pwrite(tiers.file.file.fileno(), b"\xff" * tiers.file.bytes_budget, 0)
    elif what == "cut off":
        os.ftruncate(tiers.file.file.fileno(), 0)
    tiers.expect("user-0")
    if what == "forgotten meanwhile":
        tiers.drop("user-0")
    tiers.host.settle()
    assert tiers.file.failed == (what != "forgotten meanwhile")
    assert "user-0" not in tiers.host
    assert "user-0" not in tiers.file
    assert tiers.have("user-0") == "cold"


def test_a_copy_that_the_disk_does_not_take_is_dropped(tiers, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    for number in range(4):
        tiers.compute(f"user-{number}", 14)
        demote(tiers, f"user-{number}")
    monkeypatch.setattr(operations.page_file, "write_all", full)
    tiers.host.tend()
    errors = tiers.host.settle()
    assert errors
    assert tiers.file.failed == len(errors)
    assert len(tiers.file) == 0


class FailsOnce:
    """No memory for the first call."""

    def __init__(self, call):
        self.call = call
        self.failed = False

    def __call__(self, *args: object) -> object:
        if not self.failed:
            self.failed = True
            raise MemoryError
        return self.call(*args)


@pytest.mark.parametrize("what", ["views", "job"])
def test_a_copy_whose_reading_can_not_begin_is_read_the_next_time(tiers, monkeypatch, what):
    to_file(tiers, "user-0")
    owner, name = (tiers.host.arena, "views") if what == "views" else (tiers.file.file, "_start")
    monkeypatch.setattr(owner, name, FailsOnce(getattr(owner, name)))
    free = tiers.host.arena.free.num_free
    with pytest.raises(MemoryError):
        tiers.expect("user-0")
    assert (tiers.host.is_coming("user-0"), tiers.host.arena.free.num_free) == (False, free)
    tiers.host.check_integrity(tiers.cache)
    tiers.expect("user-0")
    assert tiers.host.is_coming("user-0")
    tiers.host.settle()
    assert tiers.have("user-0") == "host"


@pytest.mark.parametrize("what", ["views", "job"])
def test_a_copy_whose_writing_can_not_begin_is_written_the_next_time(tiers, monkeypatch, what):
    for number in range(4):
        tiers.compute(f"user-{number}", 14)
        demote(tiers, f"user-{number}")
    tiers.host.settle()
    owner, name = (tiers.host.arena, "views") if what == "views" else (tiers.file.file, "_start")
    monkeypatch.setattr(owner, name, FailsOnce(getattr(owner, name)))
    free, written = tiers.file.file.free.num_free, tiers.file.written
    with pytest.raises(MemoryError):
        tiers.host.tend()
    assert tiers.file.file.free.num_free == free
    tiers.host.check_integrity(tiers.cache)
    tiers.host.tend()
    tiers.host.settle()
    assert tiers.file.written > written


def test_the_file_is_its_owners_alone_has_no_name_and_its_size_from_the_start(tmp_path):
    file = PageFile(str(tmp_path), 10, 100)
    found = os.fstat(file.fileno())
    assert stat.S_IMODE(found.st_mode) == 0o600
    assert found.st_nlink == 0
    assert found.st_size == 1000
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_can_not_be_made_says_where_and_how_large(tmp_path):
    with pytest.raises(
        ConfigError, match=r"file_directory must be a directory with 1000 bytes free .* not '.*/nowhere'"
    ):
        PageFile(str(tmp_path / "nowhere"), 10, 100)


def test_what_is_written_over_several_runs_is_read_back(tmp_path):
    file = PageFile(str(tmp_path), FILE_PAGES, 64)
    source = [np.arange(n, dtype=np.uint8).data for n in (7, 100, 20)]
    target = [bytearray(len(view)) for view in source]
    runs, records = [(3, 4), (9, 10)], []
    file.write(source, runs, records.append)
    assert file.reap(wait=True) == []
    file.read([memoryview(part) for part in target], runs, records[0], records.append)
    assert file.reap(wait=True) == []
    assert [bytes(part) for part in target] == [bytes(view) for view in source]
    assert records[0] == records[1]
    assert records[0].length == 127


def test_whatever_goes_wrong_in_the_files_thread_is_told_and_ends_nothing(tmp_path):
    file = PageFile(str(tmp_path), 4, 64)
    ended: list[object] = []
    file.write([memoryview(bytes(64)), memoryview(bytes(64))], [(0, 1)], ended.append)  # more than its pages hold
    (error,) = file.reap(wait=True)
    assert "StopIteration" in str(error)
    file.write([memoryview(bytes(64))], [(1, 2)], ended.append)
    assert not file.reap(wait=True)
    assert [record is None for record in ended] == [True, False]


def test_a_file_that_nobody_has_any_more_is_gone_with_its_thread(tmp_path):
    file = PageFile(str(tmp_path), 4, 64)
    file.write([memoryview(bytes(64))], [(0, 1)], lambda _: None)
    while file.under_way:
        file.reap()
    thread, gone = file._thread, weakref.ref(file)
    del file
    thread.join(10)
    gc.collect()
    assert (gone(), thread.is_alive()) == (None, False)


def test_a_disk_that_does_not_answer_does_not_keep_the_process(tmp_path, monkeypatch):
    monkeypatch.setattr(page_file, "STOP_S", 0.01)
    file, disk = PageFile(str(tmp_path), 4, 64), threading.Event()
    thread = file._thread
    file._jobs.put(lambda: disk.wait(20) and None)
    begun = time.monotonic()
    del file
    gc.collect()
    assert time.monotonic() - begun < 10
    assert thread.is_alive()
    disk.set()
    thread.join(10)
    assert not thread.is_alive()
