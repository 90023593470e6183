"""How busy the device is and what fits into a batch, from what its steps were seen to take."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from statistics import median
from typing import NamedTuple

from xgr_stream.config import EngineConfig
from xgr_stream.scheduler.clock import Clock
from xgr_stream.scheduler.costs import StepCosts
from xgr_stream.scheduler.policy import APPEND_AGEING_S, APPEND_SHARE, Budget, WaitingAppend

APPEND_PIECE_MS = {"cpu": 20.0, "cuda": 1.3}
"""How long one batch of appends should take, by kind of device."""
CHUNK_TOKENS = {"cpu": 0, "cuda": 384}
"""Of one chunk of a prefill, by kind of device; 0: prefills are whole."""
FULL = 0.9
"""Share of the cache's budget above which users without a prefix are no longer prefilled ahead."""
PROBE_S = 1.0
"""How often an idle device is given a request that it is not thought to answer in time."""
LEAST_SHARE = 1 / 64
"""Of a batch's budget after the device ran out of memory again and again."""
GROWTH = 1.05
"""By which batches grow again with each that succeeds."""
KEPT, GAIN, MOST_MARGIN = 0.98, 0.05, 2.0
"""Share of the accepted requests that the margin keeps within what was foreseen for them, how fast it moves, and the
most that it may be."""
SAMPLE_S = 1.0
"""After so long of appends that were all beside requests, these wait for a batch of them, to see what it takes."""
SMALL_EVERY, SMALL_SHARE = 64, 0.1
"""One batch of appends in so many is that share of the others: what a batch takes whatever it holds can't be told from
batches that are all about as large."""
LEAD_S = 5e-4
"""Kept free before the next batch must start, besides what preparing it takes."""
UNKNOWN = StepCosts()
"""Of steps that nothing is known of."""


MAX_VERSIONS = 4
"""Versions of the model whose step times are kept: two serve at a time."""


class Step(NamedTuple):
    """What the device is given at once: of which version of the model, and how much (`costs.Shape`)."""

    version: str
    rows: int
    tokens: int


class _Known:
    """What is known of one version's steps."""

    def __init__(self) -> None:
        self.decodes = StepCosts()
        self.appends = StepCosts()
        """Of those by themselves: what others took says more of the requests beside them, which go first."""
        self.appends_anyhow = StepCosts(hasty=True)
        """Of all, until enough were by themselves."""
        self.num_appends = 0
        """Batches of them that the device was given and nobody asked for."""
        self.beside_since: float | None = None
        """When appends were first seen beside requests since any were by themselves; None: they were not."""
        self.share = 1.0
        """Of a batch's budget that the device has memory for."""
        self.requests = float("inf")
        """Of a batch that it has memory for: of few rows, even the least share is many."""
        self.noted_at = 0.0


class Pace:
    """Step times of each version of the model, and when the device will be free. Until something is known of a
    version's steps, they are taken to be another's: most often it is the same decoder with other weights. Written on
    the device thread; `share_s`, `batch_s`, `starts_at`, `busy_s` and `may_probe` may be called on any."""

    def __init__(self, config: EngineConfig, clock: Clock) -> None:
        self._known: dict[str, _Known] = {}
        self._config = config
        self._clock = clock
        device, chunk = config.device.partition(":")[0], config.prefill_chunk_tokens
        self.chunk_tokens = CHUNK_TOKENS[device] if chunk is None else chunk
        """Of one chunk of a prefill; 0: there are none."""
        piece_ms = config.append_piece_ms or APPEND_PIECE_MS[device]
        self._piece_s = piece_ms / 1e3
        self._free_at = float("-inf")
        self._decoded_at = float("-inf")
        """When it will be done with its requests, behind which there may be appends."""
        self._ended_at = float("-inf")
        self._probed_at = float("-inf")
        self._due_again_at = float("-inf")
        self._appended_at = float("-inf")
        """When it will be done with its appends, of which it has so many seconds (infinite: nobody knows):"""
        self._appends_s = 0.0
        self.idle = True
        """Whether the device has no batch of requests."""
        self.batches = 0
        """Of requests, that it has been given so far."""
        self._preparing_s: deque[float] = deque(maxlen=9)
        self._preparing_appends_s: deque[float] = deque(maxlen=9)
        self.margin = 1.0
        """How much longer than foreseen a request takes until its batch has ended; follows what happens."""
        self.budget = self.budget_for("", (), 0, 1, pressed=False)

    # Any thread

    def added_s(self, request: Step) -> float:
        """That a request adds to a batch."""
        return request.rows * self._decodes(request.version).row_s + self._tokens_s(request)

    def share_s(self, request: Step) -> float:
        """Of the device's time that a request takes in full batches."""
        config, costs = self._config, self._decodes(request.version)
        part = max(request.rows / config.max_batch_rows, request.tokens / config.max_batch_tokens)
        return part * costs.fixed_s + request.rows * costs.row_s + self._tokens_s(request)

    def _tokens_s(self, request: Step) -> float:
        """That its tokens to append take. A long prefill is appends of its own, in chunks: what few tokens take in a
        decode, where reading the weights once more is most of it, says nothing of thousands."""
        appends, chunk = self._appends(request.version), self.chunk_tokens
        if not chunk or request.tokens <= chunk or not appends.known:
            return request.tokens * self._decodes(request.version).token_s
        chunks = -(-request.tokens // chunk)
        return chunks * (appends.fixed_s + appends.row_s) + request.tokens * appends.token_s

    def batch_s(self, version: str) -> float:
        """That a full batch of warm requests takes."""
        return self._decodes(version).seconds(self._config.max_batch_rows, 0)

    def starts_at(self, now: float, version: str) -> float:
        """When a batch that is given to the device now would be at its first row."""
        return max(now, self._free_at) + self._decodes(version).fixed_s

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

    def decoding_s(self, now: float) -> float:
        """How long the device will be busy with requests: others go beside the appends that are behind these."""
        return max(0.0, self._decoded_at - now)

    def budget_for(
        self,
        version: str,
        appends: Sequence[WaitingAppend],
        bytes_used: int,
        bytes_budget: int,
        *,
        pressed: bool,
        appends_due: bool = False,
    ) -> Budget:
        """What the next batch, of this version, may hold. An append piece is as many tokens as `append_piece_ms` are
        enough for, or as take as long as its fixed cost, if that is more; one in `SMALL_EVERY` is small."""
        config, costs = self._config, self._appends(version)
        known = self._known.get(version)
        share, requests = (1.0, float("inf")) if known is None else (known.share, known.requests)
        tokens = piece = max(1, int(config.max_batch_tokens * share))
        waiting = sum(append.tokens for append in appends)
        token_s = costs.token_s + (costs.row_s * len(appends) / waiting if waiting else 0.0)
        if token_s:
            tokens_in_time = int(max(self._piece_s - costs.fixed_s, costs.fixed_s) / token_s)
            if costs.most_rows <= 1 and waiting:  # what one user takes does not say what another one adds
                tokens_in_time = max(tokens_in_time, -(-2 * waiting // len(appends)))
            elif known is not None and (known.num_appends + 1) % SMALL_EVERY == 0:
                tokens_in_time = int(SMALL_SHARE * tokens_in_time)
            piece = min(piece, tokens_in_time)
        self.budget = Budget(
            rows=max(1, int(config.max_batch_rows * share)),
            tokens=tokens,
            append_tokens=max(1, piece),
            room=bytes_used < FULL * bytes_budget,
            fixed_s=self._decodes(version).fixed_s,
            pressed=pressed,
            requests=requests,
            appends_due=appends_due,
        )
        return self.budget

    def are_due(self, since: float, now: float) -> bool:
        """Whether appends of which one waits since then are to go before requests."""
        return now >= max(since + APPEND_AGEING_S, self._due_again_at)

    def begins(self, now: float, step: Step) -> None:
        """A batch is given to the device."""
        self.idle = False
        self.batches += 1
        self._free_at = self._decoded_at = max(now, self._free_at) + self.decode_s(step)

    def begun(self, began_at: float, now: float) -> None:
        """The device has the batch."""
        self._preparing_s.append(now - began_at)

    def ended(self, began_at: float, step: Step, rest: Sequence[Step]) -> None:
        """A batch is done; `rest`: those that the device still has."""
        now = self._clock.now()
        known = self._noted(step.version, now)
        known.share = min(1.0, known.share * GROWTH)
        known.requests *= GROWTH
        took_s, self._ended_at = now - max(began_at, self._ended_at), now
        try:
            known.decodes.note(step.rows, step.tokens, took_s)
        finally:
            self.left(rest)

    def left(self, rest: Sequence[Step]) -> None:
        """The device has these batches, and no others."""
        self._free_at = self._decoded_at = self._clock.now() + sum(map(self.decode_s, rest))
        self._appended_at = self._free_at + self._appends_s
        self.idle = not rest

    def kept(self, foreseen_s: float, took_s: float) -> None:
        """An accepted request took so long from its arrival to the end of its batch."""
        late = took_s > foreseen_s * self.margin
        self.margin = min(MOST_MARGIN, max(1.0, self.margin + GAIN * (KEPT if late else KEPT - 1.0)))

    def appending(self, now: float, appends: Step, *, prepared_s: float = 0.0, ahead: bool) -> float:
        """The device is given appends, whose rows are users; to prepare them took so long. `ahead`: nobody asks for
        them. Returns the seconds that it is thought to take."""
        seconds, preparing = self.append_s(appends), self._preparing_appends_s
        if ahead and appends.tokens:
            preparing.append(prepared_s)
            self._noted(appends.version, now).num_appends += 1
            self._due_again_at = now + seconds / APPEND_SHARE
            # One that took long to prepare, as with a capture, is no shorter for it.
            prepared_s = min(prepared_s, median(preparing))
        takes_s = max(0.0, seconds - prepared_s)
        self._free_at = max(now, self._free_at) + takes_s
        unknown_s = 0.0 if self._appends(appends.version).known else float("inf")
        self._appends_s += takes_s + unknown_s
        self._appended_at = self._free_at + unknown_s
        return takes_s

    def appends_end(self, now: float) -> bool:
        """Whether the appends that the device has end within what it takes to prepare others, by all that is known: it
        has no requests, beside which they would take longer."""
        preparing = self._preparing_appends_s
        return self.idle and bool(preparing) and self._appended_at - now <= median(preparing)

    def appended(self, appends: Step, seconds: float, left_s: float = 0.0, *, beside: bool = False) -> None:
        """They took so long, what preparing them takes included, perhaps `beside` requests that came later. `left_s`:
        of others that the device still has."""
        now = self._clock.now()
        self._appends_s, self._appended_at = left_s, now + left_s
        if self.idle:
            self._free_at = self._appended_at
        if not appends.tokens:
            return
        known = self._noted(appends.version, now)
        if not known.appends.known:
            known.appends_anyhow.note(appends.rows, appends.tokens, seconds)
        if not beside:
            known.beside_since = None
            known.appends.note(appends.rows, appends.tokens, seconds)
        elif known.beside_since is None:
            known.beside_since = now

    def needs_sample(self, version: str) -> bool:
        """Whether a batch of appends is to be by itself, to see what it takes: for so long all were beside requests."""
        known = self._known.get(version)
        since = None if known is None else known.beside_since
        return since is not None and self._clock.now() > since + SAMPLE_S

    def cut(self, version: str, requests: int = 1) -> None:
        """The device ran out of memory: this version's batches are half as large, and grow again with each that
        succeeds. They are of at most half as many requests, too, as that batch had, if it had several."""
        known = self._noted(version, self._clock.now())
        known.share = max(LEAST_SHARE, known.share / 2)
        if requests > 1:
            known.requests = min(known.requests, requests // 2)

    def decode_s(self, step: Step) -> float:
        """That such a batch takes."""
        return self._decodes(step.version).seconds(step.rows, step.tokens)

    def append_s(self, appends: Step) -> float:
        """That such appends take; their rows are users. Without tokens there is nothing to compute."""
        if not appends.tokens:
            return 0.0
        return self._appends(appends.version).seconds(appends.rows, appends.tokens)

    # What is known of a version

    # Asked several times for every request, so without a layer between.

    def _decodes(self, version: str) -> StepCosts:
        known = self._known.get(version)
        if known is not None and known.decodes.known:
            return known.decodes
        return _any_known(known.decodes for known in list(self._known.values()))

    def _appends(self, version: str) -> StepCosts:
        known = self._known.get(version)
        if known is not None and known.appends.known:
            return known.appends
        others = list(self._known.values())
        own = [] if known is None else [known]
        return _any_known([*[k.appends for k in others], *[k.appends_anyhow for k in own + others]])

    def _noted(self, version: str, now: float) -> _Known:
        known = self._known.get(version)
        if known is None:
            by_age = sorted(self._known.items(), key=lambda item: item[1].noted_at)
            known = _Known()
            self._known = dict([*by_age[1 - MAX_VERSIONS :], (version, known)])  # another one: it may be read meanwhile
        known.noted_at = now
        return known


def _any_known(costs: Iterable[StepCosts]) -> StepCosts:
    return next((each for each in costs if each.known), UNKNOWN)
