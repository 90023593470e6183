"""Prefixes on their way between the device and host memory, layer by layer, beside what the device computes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from xgr_stream.cache import Demotion, HostCopy, HostTier, PrefixCache, UserPrefix, as_words
from xgr_stream.engine.lanes import Lane, Mark
from xgr_stream.engine.restore_costs import RestoreCosts

IntArray = NDArray[np.int32]


@dataclass(slots=True)
class Moved:
    """What has been copied in one direction since the engine was loaded."""

    users: int = 0
    bytes: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, slots=True, eq=False)
class Movement:
    """A copy under way. Its users' memory must stay until the mark is done; then `finish` is to be called."""

    prefix: UserPrefix
    lane: Lane
    mark: Mark
    finish: Callable[[], None]


class _Buffer:
    """Device memory for one layer of a prefix, its pages side by side, and when it may be overwritten."""

    def __init__(self, pages: Tensor) -> None:
        self.pages = pages
        """[pages, 2, kv_heads, page_size, head_dim], of FP8 half as many integers (`as_words`)"""
        self.read: Mark | None = None


class Mover:
    """Copies prefixes out of the pool and back, each direction on lanes of its own.

    The pages of a prefix are scattered over the pool, and what a link carries fast are long pieces: so each layer is
    gathered into (scattered from) a buffer on the device, and crosses in one copy for each run of host pages. On the
    way back, a layer crosses while the one before it is scattered, and its mark says when it is there.
    """

    def __init__(self, cache: PrefixCache, host: HostTier, costs: RestoreCosts, *, pages: int) -> None:
        """`pages`: of the longest prefix to expect; for a longer one the buffers are made anew."""
        device = cache.hidden.device
        self._cache = cache
        self._host = host
        self._costs = costs
        self._out = Lane(device)
        self._in = Lane(device, priority=-1)
        self._scatter = Lane(device, priority=-1)
        self._device = device
        self._k, self._v = as_words(cache.pool.k), as_words(cache.pool.v)
        self._make_buffers(pages)
        self._coming: dict[str, list[Mark]] = {}
        self.demoted = Moved()
        self.promoted = Moved()

    @property
    def lanes(self) -> tuple[Lane, ...]:
        """Those that work is kept on."""
        return self._out, self._scatter

    @property
    def out(self) -> Lane:
        """Where prefixes leave the device."""
        return self._out

    @property
    def buffer_bytes(self) -> int:
        """Device memory that copies pass through."""
        return sum(buffer.pages.nbytes for buffer in (self._out_buffer, *self._in_buffers))

    @property
    def num_coming(self) -> int:
        """Users on their way to the device."""
        return len(self._coming)

    def coming(self, user_ids: Iterable[str]) -> list[list[Mark]]:
        """Of those of these users who are on their way to the device: when each layer is there."""
        return [self._coming[user_id] for user_id in user_ids if user_id in self._coming] if self._coming else []

    def demote(self, demotion: Demotion, behind: Sequence[Lane]) -> Movement:
        """Start a copy to host memory, behind what these lanes have been given so far. Nobody may write to the prefix's
        pages before it is done, but for those who follow `out`."""
        prefix, arena, lane = demotion.prefix, self._host.arena, self._out
        runs, pages = demotion.runs, prefix.pages[demotion.first_page :]
        try:
            self._fit(len(pages))
            for other in behind:
                if lane.stream is not None:
                    other.mark().hold(lane.stream)
            begun = lane.mark()
            with lane.current():
                index = self._index(pages)
                buffer = self._out_buffer.pages[: len(pages)]
                for layer, host in enumerate(as_words(arena.pages)):
                    torch.index_select(self._k[layer], 0, index, out=buffer[:, 0])
                    torch.index_select(self._v[layer], 0, index, out=buffer[:, 1])
                    _each_run(runs, host, buffer, lambda host, device: host.copy_(device, non_blocking=True))
                row = demotion.copy.runs[0][0]
                arena.hidden[row].copy_(self._cache.hidden[prefix.hidden_slot], non_blocking=True)
        except BaseException:
            lane.mark().wait()  # what was begun writes to the pages until it is done
            self._host.end(demotion, done=False)
            raise
        mark = lane.mark()

        def finish() -> None:
            self._host.end(demotion, done=True)
            self._note(self.demoted, len(pages), mark.ms_since(begun))

        return Movement(prefix, lane, mark, finish)

    def promote(self, copy: HostCopy) -> Movement:
        """Give the user the prefix that the copy is of, whose layers are there when `coming` says so. Makes room and
        raises as `PrefixCache.draft` does."""
        cache, pool, arena = self._cache, self._cache.pool, self._host.arena
        prefix = copy.prefix
        draft = cache.draft(None, prefix.kv_tokens)
        pages, layers = len(draft.pages), []
        try:
            self._fit(pages)
            begun = self._in.mark()
            with self._scatter.current():
                index = self._index(draft.pages)
                cache.hidden[draft.hidden_slot].copy_(arena.hidden[copy.runs[0][0]], non_blocking=True)
            for layer, host in enumerate(as_words(arena.pages)):
                buffer = self._in_buffers[layer % 2]
                device = buffer.pages[:pages]
                if buffer.read is not None and self._in.stream is not None:
                    buffer.read.hold(self._in.stream)
                with self._in.current():
                    _each_run(copy.runs, host, device, lambda host, device: device.copy_(host, non_blocking=True))
                if self._scatter.stream is not None:
                    self._in.mark().hold(self._scatter.stream)
                with self._scatter.current():
                    self._k[layer].index_copy_(0, index, device[:, 0])
                    self._v[layer].index_copy_(0, index, device[:, 1])
                buffer.read = self._scatter.mark()
                layers.append(buffer.read)
        except BaseException:
            for lane in (self._in, self._scatter):
                lane.mark().wait()  # as above, and the next copy's buffers are free
            cache.abandon(draft)
            raise
        self._host.hold(copy)
        arrived = replace(prefix, pages=draft.pages, hidden_slot=draft.hidden_slot)
        cache.publish(arrived, draft, restored=True)
        self._coming[prefix.user_id] = layers

        def finish() -> None:
            self._host.release(copy)
            if self._coming.get(prefix.user_id) is layers:
                del self._coming[prefix.user_id]
            milliseconds = layers[-1].ms_since(begun)
            self._note(self.promoted, pages, milliseconds)
            self._costs.copied(pages * pool.bytes_per_page, milliseconds / 1e3)

        return Movement(arrived, self._scatter, layers[-1], finish)

    def _note(self, moved: Moved, pages: int, milliseconds: float) -> None:
        moved.users += 1
        moved.bytes += pages * self._cache.pool.bytes_per_page
        moved.seconds += milliseconds / 1e3

    def _index(self, pages: IntArray) -> Tensor:
        """On the device, without waiting for what its lane was given before."""
        index = torch.from_numpy(pages.astype(np.int64))
        return index.pin_memory().to(self._device, non_blocking=True) if self._device.type == "cuda" else index

    def _fit(self, pages: int) -> None:
        if pages > len(self._out_buffer.pages):
            if self._device.type == "cuda":
                torch.cuda.synchronize(self._device)  # the old ones may still be read
            self._make_buffers(pages)

    def _make_buffers(self, pages: int) -> None:
        _, _, kv_heads, page_size, width = self._k.shape
        shape = (pages, 2, kv_heads, page_size, width)
        buffers = [_Buffer(torch.empty(shape, dtype=self._k.dtype, device=self._device)) for _ in range(3)]
        self._out_buffer, *self._in_buffers = buffers
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)  # their memory may have been somebody's on another lane


def _each_run(
    runs: Iterable[tuple[int, int]], host: Tensor, device: Tensor, copy: Callable[[Tensor, Tensor], object]
) -> None:
    """Copy between host pages in runs and device pages side by side, of one layer."""
    place = 0
    for first, stop in runs:
        copy(host[first:stop], device[place : place + stop - first])
        place += stop - first
