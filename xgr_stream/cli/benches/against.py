"""The engine, timed warm and cold, and transformers' constrained beam search over the same users."""

from __future__ import annotations

import platform
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any, Literal

import numpy as np
import torch

from xgr_stream.catalog import Catalog
from xgr_stream.config import CacheConfig, EngineConfig, KvCacheDtype, WindowConfig
from xgr_stream.engine import Engine
from xgr_stream.engine.context import EVENTS_AHEAD
from xgr_stream.errors import ConfigError
from xgr_stream.model import load_model
from xgr_stream.testing.models import save_tiny_model, tiny_items
from xgr_stream.types import CacheState, RecommendRequest, RecommendResponse, UserEvent

SCORE_TOLERANCE = 1e-3
"""Beams whose scores are this close may stand in either order."""

WARM_UP = 2
"""Cold and warm runs that come before the timed ones."""


def random_checkpoint(path: Path, seed: int) -> Path:
    """A checkpoint and catalog of the MovieLens example's shape, with random weights and items."""
    codes = (64, 64, 64)
    shape = {"hidden_size": 128, "intermediate_size": 256, "num_key_value_heads": 4, "head_dim": 32}
    save_tiny_model(path, codes, seed=seed, config=shape)
    catalog = Catalog.from_table(tiny_items(codes, items=1349, shared=0, seed=seed), codes=codes)
    catalog.save(path / "catalog.parquet")
    return path


@dataclass(frozen=True, slots=True)
class Workload:
    """What is measured."""

    model: Path
    catalog: Path
    beam: int
    events: int
    repeats: int
    baseline_repeats: int
    threads: int
    seed: int
    device: str
    dtype: Literal["float32", "bfloat16", "float16"] | None
    kv_cache_dtype: KvCacheDtype = "auto"


@dataclass(frozen=True, slots=True)
class Timing:
    """Milliseconds of one batch."""

    median: float
    fastest: float
    slowest: float

    @classmethod
    def of(cls, times_ms: Sequence[float]) -> Timing:
        return cls(statistics.median(times_ms), min(times_ms), max(times_ms))

    def __str__(self) -> str:
        return f"{self.median:.1f} ms ({self.fastest:.1f} to {self.slowest:.1f})"


@dataclass(frozen=True, slots=True)
class BatchFigures:
    """One batch size's figures."""

    batch: int
    warm: Timing
    cold: Timing
    baseline: Timing | None
    differing: int
    """Requests whose beams differ from the baseline's."""

    def text(self) -> str:
        lines = [f"batch {self.batch}", f"  warm          {self.warm}", f"  cold          {self.cold}"]
        lines.append(f"  warm is {self.cold.median / self.warm.median:.1f} × faster than cold")
        if self.baseline is not None:
            lines.insert(1, f"  transformers  {self.baseline}")
            lines.append(
                f"  than transformers: warm {self.baseline.median / self.warm.median:.0f} × faster, "
                f"cold {self.baseline.median / self.cold.median:.0f} ×; "
                f"same beams for {self.batch - self.differing} of {self.batch} requests"
            )
        return "\n".join(lines)

    def figures(self) -> dict[str, Any]:
        timings = {"warm_ms": self.warm, "cold_ms": self.cold, "baseline_ms": self.baseline}
        return {
            "batch": self.batch,
            "differing": self.differing,
            **{name: timing and [timing.median, timing.fastest, timing.slowest] for name, timing in timings.items()},
        }


class EngineBench:
    """One engine and users with random histories, the same for every batch size."""

    def __init__(self, workload: Workload) -> None:
        torch.set_num_threads(workload.threads)
        self._workload = workload
        model = load_model(workload.model, device=workload.device, dtype=workload.dtype)
        # The score that `generate` computes, so that the results can be compared.
        config = EngineConfig(
            normalizer="vocabulary",
            window=WindowConfig(max_events=workload.events + EVENTS_AHEAD),  # no next window is computed besides
            device=workload.device,
            dtype=workload.dtype,
            cache=CacheConfig(kv_cache_dtype=workload.kv_cache_dtype),
        )
        self._engine = Engine.load(model, Catalog.load(workload.catalog), config=config)
        if set(self._engine.catalog.available.tolist()) != {True}:
            raise ConfigError("catalog must have all its items available: the baseline knows no others")

    def description(self) -> str:
        workload, model = self._workload, self._engine.model
        in_fp8 = ", KV cache in FP8" if workload.kv_cache_dtype == "fp8" else ""
        return (
            f"{model.config.model_type}, {model.config.num_layers} layers, hidden size {model.config.hidden_size}, "
            f"{' × '.join(map(str, model.tokens.codes))} codes, {self._engine.catalog.num_items} items; beam "
            f"{workload.beam}, {workload.events} events{in_fp8}; {platform.machine()}, {workload.device}, "
            f"{workload.threads} torch thread(s), "
            f"torch {torch.__version__}, seed {workload.seed}; medians (fastest to slowest)"
        )

    def measure(self, batch: int, *, against_transformers: bool) -> BatchFigures:
        workload = self._workload
        users = [self._user(i) for i in range(batch)]
        warm, cold = self._warm_and_cold(users)
        if not against_transformers:
            return BatchFigures(batch, warm, cold, None, 0)
        from xgr_stream.cli.benches.transformers_baseline import TransformersBaseline

        baseline = TransformersBaseline(workload.model, self._engine.model, self._engine.catalog, workload.beam)
        contexts = np.stack([self._context(user) for user in users])
        baseline.generate(contexts)
        runs = [_timed(lambda: baseline.generate(contexts)) for _ in range(workload.baseline_repeats)]
        timing, beams = Timing.of([ms for ms, _ in runs]), runs[-1][1]
        responses = self._answer([self._user(i) for i in range(batch)], CacheState.WARM, k=workload.beam)
        differing = sum(not _same(mine, theirs) for mine, theirs in zip(responses, beams, strict=True))
        return BatchFigures(batch, warm, cold, timing, differing)

    def _warm_and_cold(self, users: Sequence[str]) -> tuple[Timing, Timing]:
        """In turn: a machine that others use changes its speed within seconds, and would decide the ratio."""
        cold, warm = [], []
        for _ in range(WARM_UP + self._workload.repeats):
            self._forget()
            cold.append(_timed(lambda: self._answer(users, CacheState.COLD))[0])
            warm.append(_timed(lambda: self._answer(users, CacheState.WARM))[0])
        return Timing.of(warm[WARM_UP:]), Timing.of(cold[WARM_UP:])

    def _user(self, number: int) -> str:
        """A user with random events, made on first use and warm."""
        user_id = f"user-{number}"
        engine = self._engine
        if engine.history.view(user_id) is None:
            random = np.random.default_rng((self._workload.seed, number))
            for row in random.integers(0, engine.catalog.num_items, self._workload.events).tolist():
                engine.history.apply(UserEvent(user_id, engine.catalog.item_ids[row]))
        view = engine.history.view(user_id)
        if view is not None:
            engine.warm([view])
        return user_id

    def _context(self, user_id: str) -> Any:
        """The same context that the engine reads, [tokens]."""
        tokens, history, catalog = self._engine.model.tokens, self._engine.history, self._engine.catalog
        view = history.view(user_id)
        items = [] if view is None else [history.item_names[item] for item in view.items.tolist()]
        events = tokens.encode(catalog.sids[catalog.rows(items)])
        return np.concatenate((tokens.prompt, events, tokens.tail))

    def _answer(self, users: Sequence[str], expected: CacheState, k: int = 10) -> list[RecommendResponse]:
        beam = self._workload.beam
        view = self._engine.history.view
        requests = [RecommendRequest(user, user, min(k, beam), beam) for user in users]
        responses = self._engine.answer([(request, view(request.user_id)) for request in requests])
        if any(response.cache is not expected for response in responses):
            raise ConfigError(f"every request must be {expected}; raise the cache's budget or lower --batch")
        return responses

    def _forget(self) -> None:
        self._engine.forget([f"user-{i}" for i in range(len(self._engine.cache))])


def _timed(run: Callable[[], Any]) -> tuple[float, Any]:
    """Its milliseconds, and what it returned."""
    started = perf_counter()
    result = run()
    return (perf_counter() - started) * 1e3, result


def _same(response: RecommendResponse, beams: Sequence[tuple[tuple[int, ...], float]]) -> bool:
    """Whether a response names the baseline's semantic IDs in the baseline's order, near ties aside."""
    mine: dict[tuple[int, ...], float] = {}
    for item in response.items:
        mine.setdefault(item.sid, item.score)
    theirs = dict(beams[: len(mine)])
    last = beams[len(mine) - 1][1] if len(beams) >= len(mine) else float("inf")
    return all(abs(score - theirs.get(sid, last)) < SCORE_TOLERANCE for sid, score in mine.items()) and all(
        abs(score - other) < SCORE_TOLERANCE for score, (_, other) in zip(mine.values(), beams, strict=False)
    )
