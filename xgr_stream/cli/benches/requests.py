"""One request batch at a time, as its caller waits for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from xgr_stream.cli.benches.floors import Cell, Floor
from xgr_stream.cli.benches.samples import Samples, measure
from xgr_stream.cli.benches.subject import Requests, Subject, Users, answer_as, check_answers, requests_of
from xgr_stream.config import MIB
from xgr_stream.engine import Engine
from xgr_stream.history import HistoryView
from xgr_stream.types import CacheState

WARM_UP = 3
"""Untimed runs before the timed ones."""


@dataclass(frozen=True, slots=True)
class Measured:
    """What is measured of each batch, and how often."""

    warm: bool
    cold: bool
    host: bool
    """Also requests whose users come back from host memory."""
    pending_events: int
    """Events that an "event and its request" request has still to append; 0: none is measured."""
    repeats: int
    cold_repeats: int
    k: int


class RequestBench:
    """Users of one context length, and the engine that answers them."""

    def __init__(self, subject: Subject, measured: Measured, context: int, cells: Sequence[Cell]) -> None:
        self._subject = subject
        self._measured = measured
        users = max(cell.batch for cell in cells)
        events = measured.pending_events
        steps = events * (WARM_UP + measured.cold_repeats)
        # Half of them come before the context is as long as it is to be, if it holds as many.
        most = (context // subject.event_tokens - 1) // events if events else 0
        self._exact = min(events * max(1, most), steps // 2)
        self._users: Users = subject.users(users, context, before=self._exact, after=steps - self._exact)
        beam, rows = max(cell.beam for cell in cells), max(cell.batch * cell.beam for cell in cells)
        self._engine: Engine = subject.engine(self._users, beam=beam, rows=rows, host=measured.host)

    @property
    def context(self) -> int:
        """Tokens in each context."""
        return self._users.context_at(self._exact)

    def measure(self, cell: Cell, floor: Floor | None) -> dict[str, object]:
        """The row of one batch size and beam width."""
        engine, measured, device = self._engine, self._measured, self._subject.device
        steps = [step[: cell.batch] for step in self._users.steps]
        views = steps[self._exact]
        user_ids = [view.user_id for view in views]
        row: dict[str, object] = {"context": self.context, "batch": cell.batch, "beam": cell.beam}
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)

        def requests(at: Sequence[HistoryView]) -> Requests:
            return requests_of(at, beam=cell.beam, k=min(measured.k, cell.beam))

        def timed(state: CacheState, repeats: int, before: Any = None) -> Samples:
            asked = requests(views)
            return measure(
                lambda: answer_as(engine, asked, state), device, repeats=repeats, warm_up=WARM_UP, before=before
            )

        engine.warm(views)
        if measured.warm:
            row["warm_ms"] = timed(CacheState.WARM, measured.repeats)
        if measured.pending_events:
            # As they come: each request finds what the one before it left, and one append more to do.
            engine.forget(user_ids)
            engine.warm(steps[0])
            coming = iter([requests(at) for at in steps[measured.pending_events :: measured.pending_events]])
            row["pending_ms"] = measure(
                lambda: answer_as(engine, next(coming), CacheState.APPENDED),
                device,
                repeats=measured.cold_repeats,
                warm_up=WARM_UP,
            )
        if measured.host:
            engine.forget(user_ids)
            engine.warm(views)
            row["host_ms"] = timed(CacheState.HOST, measured.repeats, lambda: engine.demote(user_ids))
            self._add_copies(row)
        if measured.cold:
            row["cold_ms"] = timed(CacheState.COLD, measured.cold_repeats, lambda: engine.forget(user_ids))
        self._add_ratios(row, floor)
        self._add_checks(row, views, cell)
        engine.forget(user_ids)
        return row

    def _add_ratios(self, row: dict[str, object], floor: Floor | None) -> None:
        warm, cold, pending = (row.get(name) for name in ("warm_ms", "cold_ms", "pending_ms"))
        if isinstance(warm, Samples) and isinstance(pending, Samples):
            row["pending_more_ms"] = pending.median - warm.median
        if floor is None:
            return
        row |= {"gemm_floor_ms": floor.gemm_ms, "attention_floor_ms": floor.attention_ms, "floor_ms": floor.warm_ms}
        if isinstance(warm, Samples):
            row["warm_over_floor"] = warm.median / floor.warm_ms
        if isinstance(cold, Samples):
            row |= {
                "prefill_gemm_floor_ms": floor.prefill_gemm_ms,
                "prefill_attention_floor_ms": floor.prefill_attention_ms,
                "cold_floor_ms": floor.cold_ms,
                "cold_over_floor": cold.median / floor.cold_ms,
            }

    def _add_copies(self, row: dict[str, object]) -> None:
        """How fast prefixes came back and went, each copy by itself."""
        tiers = self._engine.stats().tiers
        if tiers is not None:
            row["in_gb_per_s"] = tiers.promoted_bytes / max(tiers.promoted_s, 1e-9) / 1e9
            row["out_gb_per_s"] = tiers.demoted_bytes / max(tiers.demoted_s, 1e-9) / 1e9

    def _add_checks(self, row: dict[str, object], views: Sequence[HistoryView], cell: Cell) -> None:
        """Memory, and whether the answers are answers."""
        device = self._subject.device
        if device.type == "cuda":
            row["peak_mib"] = round(torch.cuda.max_memory_allocated(device) / 2**20)
        pool = self._engine.cache.pool
        needed = cell.batch * self.context * pool.bytes_per_page / pool.page_size
        self._engine.forget([view.user_id for view in self._users.steps[-1][cell.batch :]])
        responses = check_answers(self._engine.answer(requests_of(views, beam=cell.beam, k=cell.beam)))
        stats = self._engine.stats()
        row["kv_over_needed"] = stats.bytes_used / needed
        # For `xgr-stream plan`: what the cache takes of the peak, and what one user takes of the cache.
        row["cache_mib"], row["user_mib"] = stats.bytes_budget / MIB, stats.bytes_used / cell.batch / MIB
        catalog = self._subject.catalog
        unknown = sum(catalog.sid(item.item_id) != item.sid for response in responses for item in response.items)
        row["invalid_items"] = self._engine.stats().invalid_items + unknown
        row["distinct_beams"] = min(len({item.sid for item in response.items}) for response in responses)
