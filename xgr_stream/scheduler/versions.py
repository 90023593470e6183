"""Which engine serves which user: the primary, or for a part of the users a challenger beside it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from typing import Generic, TypeVar

from xgr_stream.config import Role
from xgr_stream.errors import ConfigError
from xgr_stream.scheduler.ports import DeviceEngine

E = TypeVar("E", bound=DeviceEngine)

MAX_REMEMBERED = 1 << 16
"""Users of whom it is remembered whether they are a challenger's: to hash an id takes a microsecond, and is asked for
several times on a request's way."""


class Share:
    """A fixed part of all users, equal on every worker. With a larger fraction it has all that it had with a smaller
    one; with another `salt` it is another part, whatever partition the users are on."""

    def __init__(self, salt: str, fraction: float) -> None:
        key, below = blake2b(salt.encode(), digest_size=32).digest(), int(fraction * (1 << 64))

        @lru_cache(MAX_REMEMBERED)
        def has(user_id: str) -> bool:
            return int.from_bytes(blake2b(user_id.encode(), digest_size=8, key=key).digest()) < below

        self.has = has


class Challenger(Generic[E]):
    """A second version. As `canary` it serves its share of the users in the primary's place; as `shadow` it computes
    what they were answered once more, for a comparison."""

    def __init__(self, engine: E, role: Role, fraction: float) -> None:
        self.engine = engine
        self.role = role
        self.fraction = fraction
        self.has = Share(engine.version, fraction).has


@dataclass(frozen=True, slots=True)
class _Serving(Generic[E]):
    """What is read together: on the loop's thread it may change between two looks."""

    primary: E
    challenger: Challenger[E] | None


class Versions(Generic[E]):
    """The engines of one device. `of` and the properties may be used on any thread; what changes them belongs to the
    device's, between two batches."""

    def __init__(self, primary: E) -> None:
        self._serving: _Serving[E] = _Serving(primary, None)

    @property
    def primary(self) -> E:
        return self._serving.primary

    @property
    def challenger(self) -> Challenger[E] | None:
        return self._serving.challenger

    @property
    def shadow(self) -> Challenger[E] | None:
        """The challenger, if it is one."""
        challenger = self._serving.challenger
        return challenger if challenger is not None and challenger.role == "shadow" else None

    @property
    def engines(self) -> tuple[E, ...]:
        serving = self._serving
        return (serving.primary,) if serving.challenger is None else (serving.primary, serving.challenger.engine)

    @property
    def fractions(self) -> dict[tuple[str, str], float]:
        """The share of the users of each, by version and role."""
        serving = self._serving
        challenger = serving.challenger
        if challenger is None:
            return {(serving.primary.version, "primary"): 1.0}
        served = challenger.fraction if challenger.role == "canary" else 0.0
        return {
            (serving.primary.version, "primary"): 1.0 - served,
            (challenger.engine.version, challenger.role): challenger.fraction,
        }

    def of(self, user_id: str) -> E:
        """The engine whose answers the user gets."""
        serving = self._serving
        challenger = serving.challenger
        if challenger is not None and challenger.role == "canary" and challenger.has(user_id):
            return challenger.engine
        return serving.primary

    def forget(self, user_ids: Iterable[str]) -> None:
        """Drop these users' prefixes, of whichever engine: they may have been another's users before."""
        users = list(user_ids)
        for engine in self.engines:
            engine.forget(users)

    # Device thread, between two batches

    def challenge(self, engine: E, role: Role, fraction: float) -> None:
        """Have this engine beside the primary, in the place of the challenger that there is, if any."""
        if engine.version == self.primary.version:
            raise ConfigError(f"a challenger must be of another version than the primary, not {engine.version} too")
        self._serving = _Serving(self.primary, Challenger(engine, role, fraction))

    def promote(self) -> None:
        """The challenger serves everybody, and the primary is let go."""
        if self.challenger is not None:
            self._serving = _Serving(self.challenger.engine, None)

    def drop(self) -> None:
        """The primary serves everybody, and the challenger is let go."""
        self._serving = _Serving(self.primary, None)
