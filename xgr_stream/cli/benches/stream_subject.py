"""What `bench stream` serves: an engine, its users, and a way to run a schedule against it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch

from xgr_stream.cli.benches.arrivals import Loop, Mix, Schedule
from xgr_stream.cli.benches.options import Setting
from xgr_stream.cli.benches.report import environment
from xgr_stream.config import EngineConfig
from xgr_stream.errors import ConfigError
from xgr_stream.testing.null_engine import TOKENS_PER_EVENT, NullEngine
from xgr_stream.testing.paced_engine import PacedEngine, StepTimes

Run = Callable[[Schedule | Loop, float], dict[str, object]]

COLD_USERS = 32
"""Users who ask cold in turn, beside as many as there may be requests at a time; each is forgotten before."""
GROWTH = 1.25
"""The window over the context at the start: whose context outgrows it goes on from about half of it."""
PREFILL_USERS = 8


@dataclass(frozen=True, slots=True)
class Served:
    """The options that say what is served and asked for."""

    setting: Setting
    engine: str | None
    """`null` or `paced`; None: the model that `setting` names."""
    times: StepTimes
    mix: Mix
    context: int
    beam: int
    k: int
    timeout_ms: int
    driver: str
    core: int | None
    concurrency: int
    """Requests at a time, at most, of loads that say how many; 0 of others."""

    def __post_init__(self) -> None:
        if self.k > self.beam:
            raise ConfigError(f"--beam must be at least --k ({self.k}), not {self.beam}")

    @property
    def described(self) -> str:
        if self.engine == "paced":
            times = self.times
            return (
                f"no model; a step takes {times.fixed_ms:g} ms, {times.row_us:g} µs a beam and {times.token_us:g} µs a "
                "token"
            )
        return "no model; a step takes no time" if self.engine == "null" else ""


def double(served: Served) -> NullEngine:
    """The engine without a model."""
    if served.engine == "paced":
        return PacedEngine(served.times, beam_width=served.beam, bytes_budget=1 << 40)
    return NullEngine(bytes_budget=1 << 40)


@contextmanager
def in_memory(served: Served) -> Iterator[tuple[Mapping[str, object], Mapping[str, Run]]]:
    """The run without a broker, and what is said of it above its figures."""
    from xgr_stream.cli.benches.stream_memory import InProcess, preload

    mix = served.mix
    cold = [f"user-{mix.users + number}" for number in range(COLD_USERS + served.concurrency if mix.cold_share else 0)]
    if served.engine is not None:
        torch.set_num_threads(served.setting.threads)
        engine: Any = double(served)
        config = EngineConfig(beam_width=served.beam)
        users = [f"user-{number}" for number in range(mix.users)]
        preload(engine.history, [*users, *cold], served.context // TOKENS_PER_EVENT, lambda n: f"item-{n % 1_000}")
        description: Mapping[str, object] = {"engine": served.described, **environment(torch.device("cpu"))}
    else:
        engine, description = _model(served, mix.users + len(cold))
        config = engine.config
        users = [f"user-{number}" for number in range(mix.users)]
    run = InProcess(engine, config, timeout_ms=served.timeout_ms, beam=served.beam, k=served.k, cold_users=cold)
    with run:
        views = [engine.history.view(user) for user in users]
        run.warm(views, PREFILL_USERS)
        yield {"broker": "none; in process", **description}, {"xgr": run.run}


def _model(served: Served, count: int) -> tuple[Any, Mapping[str, object]]:
    """The engine of the model that is named, over `count` users of the context; its description."""
    from xgr_stream.cli.benches.subject import Subject

    subject = Subject(served.setting)
    users = subject.users(count, served.context)
    most = min(round(users.max_events * GROWTH), users.history.config.keep_events)
    engine = subject.engine(replace(users, max_events=most), beam=served.beam)
    engine.prepare()
    return engine, {**subject.description(), "context": f"{users.context} tokens a user at the start"}
