"""How busy the device is and what fits into a batch, from what its steps were seen to take."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from statistics import median

from xgr_stream.config import EngineConfig
from xgr_stream.scheduler.clock import Clock
from xgr_stream.scheduler.costs import StepCosts
from xgr_stream.scheduler.policy import Budget, WaitingAppend

APPEND_PIECE_MS = {"cpu": 20.0, "cuda": 1.3}
"""How long one batch of appends should take, by kind of device."""
FULL = 0.9
"""Share of the cache's budget above which users without a prefix are no longer prefilled ahead."""
PROBE_S = 1.0
"""How often an idle device is given a request that it is not thought to answer in time."""
LEAST_SHARE = 1 / 64
"""Of a batch's budget after the device ran out of memory again and again."""
KEPT, GAIN, MOST_MARGIN = 0.98, 0.05, 2.0
"""Share of the accepted requests that the margin keeps within what was foreseen for them, how fast it moves, and the
most that it may be."""
LEAD_S = 5e-4
"""Kept free before the next batch must start, besides what preparing it takes."""


class Pace:
    """Step times, and when the device will be free. Written on the device thread; `share_s`, `starts_at`, `busy_s`
    and `may_probe` may be called on any."""

    def __init__(self, config: EngineConfig, clock: Clock) -> None:
        self.decodes = StepCosts()
        self.appends = StepCosts(hasty=True)
        self._config = config
        self._clock = clock
        piece_ms = config.append_piece_ms or APPEND_PIECE_MS[config.device.partition(":")[0]]
        self._piece_s = piece_ms / 1e3
        self._free_at = float("-inf")
        self._ended_at = float("-inf")
        self._probed_at = float("-inf")
        self.idle = True
        """Whether the device has no batch of requests."""
        self._preparing_s: deque[float] = deque(maxlen=9)
        self._share = 1.0
        self.margin = 1.0
        """How much longer than foreseen a request takes until its batch has ended; follows what happens."""
        self.budget = self.budget_for((), 0, 1, pressed=False)

    # Any thread

    def added_s(self, rows: int, tokens: int) -> float:
        """That a request adds to a batch."""
        return rows * self.decodes.row_s + tokens * self.decodes.token_s

    def share_s(self, rows: int, tokens: int) -> float:
        """Of the device's time that a request takes in full batches."""
        config = self._config
        part = max(rows / config.max_batch_rows, tokens / config.max_batch_tokens)
        return part * self.decodes.fixed_s + self.added_s(rows, tokens)

    @property
    def batch_s(self) -> float:
        """That a full batch of warm requests takes."""
        return self.decodes.seconds(self._config.max_batch_rows, 0)

    def starts_at(self, now: float) -> float:
        """When a batch that is given to the device now would be at its first row."""
        return max(now, self._free_at) + self.decodes.fixed_s

    def busy_s(self, now: float) -> float:
        """How long the device will be busy with what it was given."""
        return max(0.0, self._free_at - now)

    def may_probe(self, now: float) -> bool:
        """Whether it is time to try a request against what is thought of it."""
        if now < self._probed_at + PROBE_S:
            return False
        self._probed_at = now
        return True

    # Device thread

    @property
    def lead_s(self) -> float:
        """How long before the device is free the next batch must be begun, so that it is not idle in between."""
        return LEAD_S + (median(self._preparing_s) if self._preparing_s else 0.0)

    def budget_for(
        self, appends: Sequence[WaitingAppend], bytes_used: int, bytes_budget: int, *, pressed: bool
    ) -> Budget:
        """What the next batch may hold. An append piece is as many tokens as `append_piece_ms` are enough for, or as
        take as long as its fixed cost, if that is more."""
        config, costs = self._config, self.appends
        tokens = piece = max(1, int(config.max_batch_tokens * self._share))
        waiting = sum(append.tokens for append in appends)
        token_s = costs.token_s + (costs.row_s * len(appends) / waiting if waiting else 0.0)
        if token_s:
            piece = min(piece, int(max(self._piece_s - costs.fixed_s, costs.fixed_s) / token_s))
        self.budget = Budget(
            rows=max(1, int(config.max_batch_rows * self._share)),
            tokens=tokens,
            append_tokens=max(1, piece),
            room=bytes_used < FULL * bytes_budget,
            fixed_s=self.decodes.fixed_s,
            pressed=pressed,
        )
        return self.budget

    def begins(self, now: float, rows: int, tokens: int) -> None:
        """A batch is given to the device."""
        self.idle = False
        self._free_at = max(now, self._free_at) + self.decodes.seconds(rows, tokens)

    def begun(self, began_at: float, now: float) -> None:
        """The device has the batch."""
        self._preparing_s.append(now - began_at)

    def ended(self, began_at: float, rows: int, tokens: int, rest: Sequence[tuple[int, int]]) -> None:
        """A batch is done; `rest`: rows and tokens of those that the device still has."""
        now = self._clock.now()
        self.decodes.note(rows, tokens, now - max(began_at, self._ended_at))
        self._ended_at = now
        self._share = min(1.0, self._share * 1.05)
        self.left(rest)

    def left(self, rest: Sequence[tuple[int, int]]) -> None:
        """The device has these batches, rows and tokens of each, and no others."""
        self._free_at = self._clock.now() + sum(self.decodes.seconds(*shape) for shape in rest)
        self.idle = not rest

    def kept(self, foreseen_s: float, took_s: float) -> None:
        """An accepted request took so long from its arrival to the end of its batch."""
        late = took_s > foreseen_s * self.margin
        self.margin = min(MOST_MARGIN, max(1.0, self.margin + GAIN * (KEPT if late else KEPT - 1.0)))

    def appending(self, now: float, users: int, tokens: int) -> None:
        """The device was given appends."""
        self._free_at = max(now, self._free_at) + self.appends.seconds(users, tokens)

    def appended(self, users: int, tokens: int, seconds: float) -> None:
        """They took so long."""
        if tokens:
            self.appends.note(users, tokens, seconds)

    def cut(self) -> None:
        """The device ran out of memory: batches are half as large, and grow again with each that succeeds."""
        self._share = max(LEAST_SHARE, self._share / 2)
