"""What a check ends in."""

from __future__ import annotations

from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Literal

from aiokafka.errors import KafkaError

Grade = Literal["ok", "warning", "error"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at. `remedy`: what to do, empty if nothing."""

    grade: Grade
    what: str
    remedy: str = ""


def allow(operation: str, resource: str) -> str:
    """The remedy for a right that is missing."""
    return (
        f"kafka-acls --add --allow-principal User:NAME --operation {operation} {resource}, and no rule that denies it"
    )


def not_looked_at(what: str, error: Exception) -> Finding:
    """What went wrong is a finding too: those of other checks are to be seen with it."""
    if isinstance(error, KafkaError | OSError):  # a time-out is an OSError
        remedy = "look at the brokers, and at what their rules allow this user (docs/operations.md)"
    else:
        remedy = "a defect of xgr-stream, unless its message names another reason"
    return Finding("error", f"{what} can't be looked at: {error!r}", remedy)


async def looked_at(what: str, check: Awaitable[list[Finding]]) -> list[Finding]:
    """What the check finds, whatever it meets."""
    try:
        return await check
    except Exception as error:  # noqa: BLE001
        return [not_looked_at(what, error)]
