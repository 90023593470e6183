"""What a check ends in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Grade = Literal["ok", "warning", "error"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at. `remedy`: what to do, empty if nothing."""

    grade: Grade
    what: str
    remedy: str = ""
