"""How long a worker takes to have its users' histories at hand: from snapshots, and from the whole changelog.

    PYTHONPATH=.:kernels python tests/history/recover_at_scale.py [--users N] [--events N] [--partitions N] [--without]

Generates the histories of 100,000 items (untimed) and writes a snapshot of each partition. Then, each in a process of
its own, restores all of them through the processor, as a worker does: from the snapshots, and with --without from the
records of a compacted changelog. Prints JSON lines: seconds to ready, CPU seconds, resident memory when ready and at
the end, bytes per user besides 6 per event. Reading the records from a broker is not in it.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgpack
import numpy as np

from xgr_stream.config import HistoryConfig, StreamConfig
from xgr_stream.history import HistoryStore
from xgr_stream.history.packed import Numbering
from xgr_stream.history.snapshot import Snapshot, SnapshotWriter, Source
from xgr_stream.history.user import EVENT_BYTES, UserHistory
from xgr_stream.metrics import Metrics
from xgr_stream.stream import changelog
from xgr_stream.stream.processor import Processor
from xgr_stream.stream.records import Record
from xgr_stream.stream.recovery import making_histories
from xgr_stream.testing import ManualClock, NullEngine

ITEMS = 100_000
CONFIG = HistoryConfig()
CHUNK_USERS = 512
BATCH = 2_000


class Nobody:
    """A device worker that nothing is asked of."""

    def submit(self, *_: object) -> None:
        raise NotImplementedError

    def want_appends(self, views: object) -> None:
        """Nobody is warmed."""

    def forget(self, user_ids: object) -> None:
        """Nobody is warm."""


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def users_of(partition: int, args: argparse.Namespace) -> Iterator[tuple[str, np.ndarray, int]]:
    """(user, item numbers, offset of the last event); items are drawn by Zipf's law, as they are looked at."""
    rng = np.random.default_rng(partition)
    upto = np.cumsum(1 / np.arange(1, ITEMS + 1))
    for i in range(partition, args.users, args.partitions):
        items = np.searchsorted(upto, rng.random(args.events) * upto[-1]).astype(np.int32)
        yield f"user-{i:09d}", items, i * args.events + args.events


def make_snapshot(partition: int, args: argparse.Namespace, directory: str) -> float:
    store = HistoryStore(CONFIG)
    store.item_names.add_all([f"item-{i}" for i in range(ITEMS)])
    writer = SnapshotWriter(Path(directory) / f"log-{partition}.snapshot")
    views, spent = [], 0.0
    for user_id, items, offset in users_of(partition, args):
        user = UserHistory(partition, 0, -1, bytearray(items.tobytes() + b"\xff\xff" * args.events))
        user.last_offset = offset
        views.append(user.view(user_id))
        if len(views) == CHUNK_USERS:
            started = time.process_time()
            writer.add(views)
            spent += time.process_time() - started
            views = []
    if views:
        writer.add(views)
    source = Source("log", partition, b"", 0, 0, CONFIG.keep_events, CONFIG.segment_events)
    writer.finish(source, store, [], {}, [])
    writer.publish()
    return spent


def processor() -> Processor:
    made = Processor(
        Nobody(),  # type: ignore[arg-type]
        HistoryStore(CONFIG),
        StreamConfig(history=CONFIG),
        knows_item=NullEngine().knows_item,
        clock=ManualClock(),
        metrics=Metrics(),
    )
    made.on_wake(lambda: None)
    return made


def from_snapshots(args: argparse.Namespace, directory: str) -> None:
    made = processor()
    history = made._history
    made.assign(range(args.partitions), args.partitions)
    base = resident_bytes()
    started, cpu = time.perf_counter(), time.process_time()
    with ThreadPoolExecutor(args.partitions) as threads:
        loading = []
        for partition in range(args.partitions):
            snapshot = Snapshot(Path(directory) / f"log-{partition}.snapshot")
            numbers = history.item_names.add_all(snapshot.item_names)
            numbering = Numbering.of(snapshot.item_numbers, numbers, [])
            loading.append(threads.submit(lambda s=snapshot, n=numbering: list(s.users(n))))
        for partition in range(args.partitions):
            made.begin_restore(partition, loading[partition].result(), {}, [])
            made.restored(partition)
        del loading
    report(args, "snapshot", history, started, cpu, base)


def from_changelog(args: argparse.Namespace) -> None:
    made = processor()
    history = made._history
    made.assign(range(args.partitions), args.partitions)
    base = resident_bytes()
    spent = cpu_spent = 0.0
    count = 0
    for partition in range(args.partitions):
        for batch in batches(partition, args):
            count += len(batch)
            started, cpu = time.perf_counter(), time.process_time()
            made.restore(partition, batch)
            spent += time.perf_counter() - started
            cpu_spent += time.process_time() - cpu
        started, cpu = time.perf_counter(), time.process_time()
        made.restored(partition)
        spent += time.perf_counter() - started
        cpu_spent += time.process_time() - cpu
    now = time.perf_counter(), time.process_time()
    report(args, f"changelog of {count} records", history, now[0] - spent, now[1] - cpu_spent, base)


def batches(partition: int, args: argparse.Namespace) -> Iterator[list[Record]]:
    """A compacted changelog: segments, then the deltas behind them."""
    names = [f"item-{i}" for i in range(ITEMS)]
    pack, size = msgpack.Packer(use_bin_type=True).pack, CONFIG.segment_events
    batch: list[Record] = []
    for user_id, items, offset in users_of(partition, args):
        listed = [names[i] for i in items.tolist()]
        for number in range(args.events // size):
            last = offset - args.events + (number + 1) * size - 1
            value = pack((changelog.MAJOR, last, listed[number * size : (number + 1) * size], None))
            batch.append(Record("log", partition, 0, changelog.segment_key(user_id, number), value, 0))
        for number in range(args.events // size * size, args.events):
            value = pack((changelog.MAJOR, offset - args.events + number, listed[number], None))
            batch.append(Record("log", partition, 0, changelog.delta_key(user_id, number), value, 0))
        if len(batch) >= BATCH:
            yield batch
            batch = []
    yield batch


def report(args: argparse.Namespace, source: str, history: HistoryStore, started: float, cpu: float, base: int) -> None:
    ready, ready_cpu, ready_bytes = time.perf_counter() - started, time.process_time() - cpu, resident_bytes()
    while history.unpack_some():
        pass
    unpacked = time.perf_counter() - started
    resident = resident_bytes()
    if (history.num_users, history.num_events) != (args.users, args.users * args.events):
        raise SystemExit(f"restored {history.num_users} users and {history.num_events} events")
    print(
        json.dumps(
            {
                "source": source,
                "users": args.users,
                "events_per_user": args.events,
                "ready_s": round(ready, 2),
                "ready_cpu_s": round(ready_cpu, 2),
                "unpacked_s": round(unpacked, 2),
                "resident_ready_gb": round(ready_bytes / 1e9, 3),
                "resident_gb": round(resident / 1e9, 3),
                "peak_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9, 3),
                "bytes_per_user": round((resident - base) / args.users - args.events * EVENT_BYTES),
                "counted_gb": round(history.memory_bytes / 1e9, 3),
            }
        ),
        flush=True,
    )


def each_apart(jobs: Sequence[tuple[Callable[..., object], tuple[object, ...]]]) -> None:
    """Each job in a process of its own, one after the other. Exits as the first one that fails does."""
    context = multiprocessing.get_context("spawn")
    for target, arguments in jobs:
        process = context.Process(target=target, args=arguments)
        process.start()
        process.join()
        if process.exitcode:
            raise SystemExit(process.exitcode)


def _resting(target: Callable[..., None], arguments: tuple[object, ...]) -> None:
    with making_histories():
        target(*arguments)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=1_000_000)
    parser.add_argument("--events", type=int, default=200)
    parser.add_argument("--partitions", type=int, default=4)
    parser.add_argument("--without", action="store_true", help="restore from the changelog's records, too")
    args = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory(prefix="xgr-snapshots-") as directory:
        with context.Pool(1) as pool:
            spent = sum(pool.starmap(make_snapshot, [(p, args, directory) for p in range(args.partitions)]))
        size = sum(path.stat().st_size for path in Path(directory).iterdir())
        print(json.dumps({"snapshots_gb": round(size / 1e9, 3), "written_cpu_s": round(spent, 2)}), flush=True)
        jobs = [(from_snapshots, (args, directory))] + ([(from_changelog, (args,))] if args.without else [])
        each_apart([(_resting, job) for job in jobs])


if __name__ == "__main__":
    main()
