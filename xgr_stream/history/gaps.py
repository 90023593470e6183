"""Numbers that a changelog should hold and does not."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from xgr_stream.errors import HistoryError
from xgr_stream.history.records import user_hash

MAX_NAMED = 5
"""Users and ranges that an error names."""


def refuse_gaps(partition: int, gaps: list[tuple[str, list[tuple[int, int]]]]) -> None:
    """Raise `HistoryError` if any user lacks any numbers, given as ranges (first, last)."""
    gaps = [(user_id, ranges) for user_id, ranges in gaps if ranges]
    if not gaps:
        return
    named = "; ".join(
        f"user {user_hash(user_id)}: " + ", ".join(f"{a} to {b}" for a, b in ranges[:MAX_NAMED])
        for user_id, ranges in gaps[:MAX_NAMED]
    )
    more = "" if len(gaps) <= MAX_NAMED else f" and {len(gaps) - MAX_NAMED} users more"
    raise HistoryError(
        f"the changelog of partition {partition} lacks events ({named}{more}): records were deleted or "
        "written without order (restore the topic from a copy, or reset the history and replay the events topic), "
        "or keep_events was raised after events had been let go (set it back)"
    )


def ranges_of(numbers: Iterator[int]) -> Iterator[tuple[int, int]]:
    """Consecutive runs of rising numbers, as (first, last)."""
    listed = list(numbers)
    if not listed:
        return
    breaks = [i for i, (a, b) in enumerate(pairwise(listed), start=1) if b != a + 1]
    for start, end in pairwise([0, *breaks, len(listed)]):
        yield listed[start], listed[end - 1]
