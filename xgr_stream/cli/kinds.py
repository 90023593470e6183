"""Kinds of options that click has not."""

from __future__ import annotations

import math
from typing import Any

import click

from xgr_stream.config import MAX_TIMEOUT_MS, is_name


class Finite(click.FloatRange):
    """`FloatRange` takes infinity and, as it is neither below nor above anything, NaN."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number: float = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number.", param, ctx)
        return number


class Name(click.ParamType):
    name = "text"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if not is_name(value):
            self.fail(f"{value!r} is not a name of printable characters.", param, ctx)
        return str(value)


SESSION_TIMEOUT = Finite(1.0, MAX_TIMEOUT_MS // 1000)
