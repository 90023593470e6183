"""Random operations over all tiers of a cache, each prefix's bytes checked whenever it is used.

    python -m tests.cache.operations 1000000

runs as many, and says how long it took. Copies are held open for a while, as a device's are; what the file does is as
late as its thread is, and now and then it fails, forgets or damages what it was given.
"""

from __future__ import annotations

import os
import random
import sys
import tempfile
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch

from xgr_stream.cache import (
    DecayedRate,
    FileTier,
    HostArena,
    HostCopy,
    HostTier,
    PageFile,
    PagePool,
    PrefixCache,
    UserPrefix,
    page_file,
)
from xgr_stream.errors import OutOfMemory

PAGE = 4
LAYERS = 2
PAGES, HOST_PAGES, FILE_PAGES = 24, 17, 23
USERS = tuple(f"user-{i}" for i in range(14))
LONGEST = 20
TAIL = 2
RESERVE = 8


@dataclass(frozen=True)
class Pending:
    """A copy under way."""

    user_id: str
    copy: Callable[[], None]
    """Moves the bytes; may be called at any time until `end`."""
    end: Callable[[], None]


class FailingDisk:
    """Makes some of the file's writes and reads fail."""

    def __init__(self, chance: Callable[[], bool]) -> None:
        self._chance = chance

    @contextmanager
    def applied(self) -> Iterator[None]:
        write, read = page_file.write_all, page_file.read_all

        def failing_write(*args: object) -> page_file.Record:
            if self._chance():
                raise OSError(28, "No space left on device")
            return write(*args)  # type: ignore[arg-type]

        def failing_read(*args: object) -> page_file.Record:
            if self._chance():
                raise OSError("the file ends at 0, 8 bytes of a cached prefix too early")
            return read(*args)  # type: ignore[arg-type]

        page_file.write_all, page_file.read_all = failing_write, failing_read
        try:
            yield
        finally:
            page_file.write_all, page_file.read_all = write, read


class Operations:
    """A cache with all its tiers, and what each user's bytes must be."""

    def __init__(self, seed: int, directory: str) -> None:
        self.random = random.Random(seed)
        pool = PagePool(
            layers=LAYERS,
            num_pages=PAGES,
            page_size=PAGE,
            kv_heads=1,
            head_dim=2,
            dtype=torch.float32,
            device=torch.device("cpu"),
        )
        worth = DecayedRate(50, remembered=10)
        self.cache = PrefixCache(pool, 3, worth=worth, restore_cost=lambda n, copied: n * n - 0.75 * copied * copied)
        arena = HostArena(pool, self.cache.hidden, HOST_PAGES)
        self.file = FileTier(PageFile(directory, FILE_PAGES, arena.page_bytes))
        self.host = self.cache.host = HostTier(
            arena, worth, lambda n: float(n * n), file=self.file, reserve_pages=RESERVE
        )
        self.cache.settle = self.settle
        self.lineages = 0
        self.lineage: dict[str, int] = {}
        self.pending: deque[Pending] = deque()
        self.pins: list[UserPrefix] = []
        self.counts: Counter[str] = Counter()

    # What bytes must be.

    def value(self, lineage: int, token: int, length: int) -> float:
        """Of a token; one of the tail depends on what is before it."""
        return float(lineage * 1000 + token + (0.5 * (length + 1) if token >= length else 0.0))

    def write(self, prefix: UserPrefix, lineage: int, first: int) -> None:
        pool = self.cache.pool
        for token in range(first, prefix.kv_tokens):
            page, slot = int(prefix.pages[token // PAGE]), token % PAGE
            value = self.value(lineage, token, prefix.num_tokens)
            pool.k[:, page, :, slot] = value
            pool.v[:, page, :, slot] = -value
        self.cache.hidden[prefix.hidden_slot] = lineage * 1000 + prefix.num_tokens

    def check(self, user_id: str) -> None:
        prefix, lineage = self.cache.get(user_id), self.lineage[user_id]
        assert prefix is not None
        pool, tokens = self.cache.pool, np.arange(prefix.kv_tokens)
        expected = torch.tensor([self.value(lineage, token, prefix.num_tokens) for token in tokens])
        pages, slots = torch.from_numpy(prefix.pages[tokens // PAGE]).long(), torch.from_numpy(tokens % PAGE)
        k, v = pool.k[:, pages, 0, slots], pool.v[:, pages, 0, slots]
        assert torch.equal(k, expected[None, :, None].expand_as(k)), (user_id, prefix, k, expected)
        assert torch.equal(v, -k)
        hidden = self.cache.hidden[prefix.hidden_slot]
        assert (hidden == lineage * 1000 + prefix.num_tokens).all(), (user_id, hidden)

    # What may happen.

    def draft(self, base: UserPrefix | None, kv_tokens: int) -> object:
        try:
            return self.cache.draft(base, kv_tokens)
        except OutOfMemory:
            while self.pins:
                self.cache.unpin(self.pins.pop())
            return self.cache.draft(base, kv_tokens)

    def compute(self, user_id: str, more: int) -> None:
        """Append to the user's prefix, or compute a new one."""
        base = self.cache.get(user_id)
        if base is not None and base.num_tokens + more > LONGEST - TAIL:
            base = None  # the window has moved
        if base is not None:
            self.finish_of(user_id)  # an append follows copies of what it writes over
        num_tokens = more + (0 if base is None else base.num_tokens)
        if base is not None:
            self.cache.pin(base)
        draft = self.draft(base, num_tokens + TAIL)
        prefix = UserPrefix(
            user_id, "", 0, num_tokens, -1, -1, np.empty(0, np.int32), 0, num_tokens, num_tokens + TAIL,
            draft.pages, draft.hidden_slot, 0,
        )  # fmt: skip
        if base is None:
            self.lineages += 1
            self.lineage[user_id] = self.lineages % 8000
        self.write(prefix, self.lineage[user_id], 0 if base is None else base.num_tokens)
        self.cache.publish(prefix, draft)
        if base is not None:
            self.cache.unpin(base)

    def bring(self, user_id: str, copy: HostCopy) -> None:
        arena, pool = self.host.arena, self.cache.pool
        draft = self.draft(None, copy.prefix.kv_tokens)
        if copy.gone or self.host.get(user_id) is not copy:  # making room took time, and the copy
            self.cache.abandon(draft)
            return
        prefix = replace(copy.prefix, pages=draft.pages, hidden_slot=draft.hidden_slot)
        self.host.hold(copy)
        self.cache.publish(prefix, draft, restored=True)
        self.cache.pin(prefix)

        def move() -> None:
            pages = [page for first, stop in copy.runs for page in range(first, stop)][: len(prefix.pages)]
            pool.k[:, prefix.pages] = arena.pages[:, pages, 0]
            pool.v[:, prefix.pages] = arena.pages[:, pages, 1]
            self.cache.hidden[prefix.hidden_slot] = arena.hidden[copy.runs[0][0]]

        def end() -> None:
            self.host.release(copy)
            self.cache.unpin(prefix)

        self.pending.append(Pending(user_id, move, end))

    def have(self, user_id: str) -> str:
        """The user's prefix is on the device, however it comes there."""
        if user_id in self.cache:
            return "warm"
        copy = self.host.get(user_id)
        if copy is not None:
            self.bring(user_id, copy)
        if user_id in self.cache:
            return "host"
        self.compute(user_id, self.random.randint(1, 12))
        return "cold"

    def ask(self, user_id: str) -> None:
        self.counts[self.have(user_id)] += 1
        self.finish_of(user_id)
        self.cache.touch(user_id)
        self.check(user_id)

    def append(self, user_id: str) -> None:
        self.have(user_id)
        self.finish_of(user_id)
        self.compute(user_id, self.random.randint(1, 3))
        self.cache.touch(user_id)

    def expect(self, user_id: str) -> None:
        if user_id in self.cache:
            return
        self.cache.worth.seen(user_id)
        self.host.touch(user_id)
        copy = self.host.get(user_id)
        if copy is None:
            self.host.fetch(user_id, lambda _: True)
        elif len(self.pending) < 4 and self.cache.would_keep(user_id, copy.prefix.num_tokens, copy.prefix.kv_tokens):
            self.bring(user_id, copy)

    def fork(self, user_id: str) -> None:
        base = self.cache.get(user_id)
        if base is None:
            return
        self.finish_of(user_id)
        self.cache.pin(base)
        try:
            fork = self.cache.fork(base, base.num_tokens, base.num_tokens + 3)
            self.cache.pool.k[:, int(fork.pages[-1])] = float("nan")
            self.cache.abandon(fork)
        except OutOfMemory:
            self.counts["no room for a fork"] += 1
        self.cache.unpin(base)

    def pin(self, user_id: str) -> None:
        prefix = self.cache.get(user_id)
        if len(self.pins) > 1:
            self.cache.unpin(self.pins.pop(0))
        elif prefix is not None:
            self.cache.pin(prefix)
            self.pins.append(prefix)

    def drop(self, user_id: str) -> None:
        self.cache.drop([user_id])

    def tend(self, user_id: str) -> None:
        self.host.tend()
        for demotion in self.cache.copies_ahead(RESERVE, lambda tokens: tokens > 2):
            self.demote(demotion)
            if len(self.pending) >= 4:
                break

    def demote(self, demotion: object) -> None:
        prefix, copy, arena, pool = demotion.prefix, demotion.copy, self.host.arena, self.cache.pool
        self.cache.pin(prefix)

        def move() -> None:
            pages = [page for first, stop in demotion.runs for page in range(first, stop)]
            own = prefix.pages[demotion.first_page :]
            arena.pages[:, pages, 0], arena.pages[:, pages, 1] = pool.k[:, own], pool.v[:, own]
            arena.hidden[copy.runs[0][0]] = self.cache.hidden[prefix.hidden_slot]

        def end() -> None:
            self.cache.unpin(prefix)
            self.host.end(demotion, done=True)

        self.counts["demoted"] += 1
        self.pending.append(Pending(prefix.user_id, move, end))

    def finish(self, user_id: str) -> None:
        """The oldest copy is done."""
        if self.pending:
            pending = self.pending.popleft()
            pending.copy()
            pending.end()

    def finish_of(self, user_id: str) -> None:
        while any(pending.user_id == user_id for pending in self.pending):
            self.finish(user_id)

    def damage(self, user_id: str) -> None:
        """Something else writes to the file."""
        size = FILE_PAGES * self.file.file.page_bytes
        os.pwrite(self.file.file.fileno(), b"\xff" * 5, self.random.randrange(size))

    def settle(self) -> None:
        while self.pending:
            self.finish("")

    def step(self) -> None:
        operations = (
            (self.ask, 30), (self.append, 20), (self.expect, 20), (self.tend, 20), (self.finish, 25), (self.fork, 4),
            (self.pin, 4), (self.drop, 3), (self.damage, 1),
        )  # fmt: skip
        (operation,) = self.random.choices([o for o, _ in operations], [weight for _, weight in operations])
        # Some users come far more often than others.
        operation(USERS[min(self.random.randrange(len(USERS)), self.random.randrange(len(USERS)))])

    def check_integrity(self) -> None:
        self.cache.check_integrity()

    def end(self) -> None:
        """Everything goes back to where it came from."""
        self.settle()
        self.host.settle()
        while self.pins:
            self.cache.unpin(self.pins.pop())
        self.check_integrity()
        self.cache.drop(USERS)
        self.host.settle()
        self.check_integrity()
        assert len(self.cache) == len(self.host) == len(self.file) == 0
        assert self.cache.bytes_used == self.host.bytes_used == self.file.bytes_used == 0


def run(count: int, seed: int, directory: str, *, check_every: int, failures: float) -> Operations:
    """So many operations, with that share of what the file does failing."""
    operations = Operations(seed, directory)
    disk = random.Random(seed + 1)
    with FailingDisk(lambda: disk.random() < failures).applied():
        for number in range(count):
            operations.step()
            if number % check_every == 0:
                operations.check_integrity()
        operations.end()
    return operations


def main() -> None:
    count = int(sys.argv[1])
    torch.set_num_threads(1)
    begun, cpu = time.perf_counter(), time.process_time()
    with tempfile.TemporaryDirectory() as directory:
        operations = run(count, 0, directory, check_every=100, failures=0.02)
    seconds, cpu = time.perf_counter() - begun, time.process_time() - cpu
    print(f"{count} operations in {seconds:.0f} s, {cpu:.0f} s of CPU time: {dict(operations.counts)}")
    print(
        f"dropped from host memory {operations.host.dropped}, lost to the file {operations.file.failed}, "
        f"written to it {operations.file.written}, read back {operations.file.read_back}"
    )


if __name__ == "__main__":
    main()
