"""What is behind the device's memory, in figures."""

from __future__ import annotations

from dataclasses import dataclass

from xgr_stream.cache import PrefixCache
from xgr_stream.engine.work import Work


@dataclass(frozen=True, slots=True)
class TierStats:
    """The lower tiers' state, and what they have done since the engine was loaded."""

    host_users: int
    """Users whose prefix is in host memory and not on the device."""
    host_bytes_used: int
    """Copies of users who are on the device as well included."""
    host_bytes_budget: int
    file_users: int
    file_bytes_used: int
    file_bytes_budget: int
    buffer_bytes: int
    """Memory of the device that copies pass through."""
    demoted: int
    demoted_bytes: int
    demoted_s: float
    promoted: int
    promoted_bytes: int
    promoted_s: float
    recomputed: int
    """Prefixes that were computed though there was a copy in host memory, since that is faster."""
    dropped: int
    """Copies in host memory that made room for others and went nowhere."""
    file_written: int
    file_read: int
    """Copies that went to the file, and that came back to host memory."""
    file_failures: int
    """Copies that were lost to errors of the file, damaged ones included."""


@dataclass(frozen=True, slots=True)
class UserBytes:
    """What one user takes in each tier; the same prefix may be in several."""

    device: int
    host: int
    file: int


def user_bytes(cache: PrefixCache, user_id: str) -> UserBytes:
    prefix, host = cache.get(user_id), cache.host
    return UserBytes(
        device=0 if prefix is None else len(prefix.pages) * cache.pool.bytes_per_page,
        host=0 if host is None else host.bytes_of(user_id),
        file=0 if host is None or host.file is None else host.file.bytes_of(user_id),
    )


def tier_stats(cache: PrefixCache, work: Work) -> TierStats | None:
    """None without lower tiers."""
    host, mover = cache.host, work.mover
    if host is None or mover is None:
        return None
    file = host.file
    return TierStats(
        host_users=len(host),
        host_bytes_used=host.bytes_used,
        host_bytes_budget=host.bytes_budget,
        file_users=0 if file is None else len(file),
        file_bytes_used=0 if file is None else file.bytes_used,
        file_bytes_budget=0 if file is None else file.bytes_budget,
        buffer_bytes=mover.buffer_bytes,
        demoted=mover.demoted.users,
        demoted_bytes=mover.demoted.bytes,
        demoted_s=mover.demoted.seconds,
        promoted=mover.promoted.users,
        promoted_bytes=mover.promoted.bytes,
        promoted_s=mover.promoted.seconds,
        recomputed=work.recomputed,
        dropped=host.dropped,
        file_written=0 if file is None else file.written,
        file_read=0 if file is None else file.read_back,
        file_failures=0 if file is None else file.failed,
    )
