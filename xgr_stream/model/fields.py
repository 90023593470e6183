"""Reading JSON that somebody else wrote: what does not fit raises `CheckpointError` with the field's full name, its
value and what was expected, and nothing else is ever raised."""

from __future__ import annotations

import json
import reprlib
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from xgr_stream.errors import CheckpointError

MAX_INTEGER = 2**31 - 1
# Beyond any setting that makes sense, and small enough that float32 arithmetic on two of them stays finite.
_TINY, _HUGE = 1e-18, 1e18


def read_json(path: Path) -> object:
    """The parsed JSON at `path`. Raises `CheckpointError` where there is none."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"cannot read {path} as JSON: {error}") from error


def mismatch(name: str, value: object, expected: str) -> NoReturn:
    raise CheckpointError(f"{name} must be {expected}, not {reprlib.repr(value)}")


def as_integer(name: str, value: object, least: int, most: int = MAX_INTEGER) -> int:
    # bool is a subclass of int, and `true` is no number here.
    if type(value) is not int or not least <= value <= most:
        mismatch(name, value, f"an integer from {least} to {most}")
    return value


def as_integers(name: str, value: object, least: int) -> tuple[int, ...]:
    if not isinstance(value, list | tuple):
        mismatch(name, value, "a list of integers")
    return tuple(as_integer(f"{name}[{i}]", entry, least) for i, entry in enumerate(value))


class Fields:
    """A JSON object, read field by field. A field that is null counts as absent."""

    def __init__(self, value: object, name: str) -> None:
        if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
            mismatch(name, value, "a JSON object")
        self.name = name
        self._values: dict[str, object] = value

    def has(self, key: str) -> bool:
        return self._values.get(key) is not None

    def items(self) -> Iterator[tuple[str, object]]:
        """The fields that are there, in their order."""
        return ((key, value) for key, value in self._values.items() if value is not None)

    def raw(self, key: str) -> object:
        """The value of `key`, which must be there."""
        if not self.has(key):
            raise CheckpointError(f"{self.name} must have the field {key!r}")
        return self._values[key]

    def only(self, *known: str) -> None:
        """Refuses a field that is none of `known`: a misspelt one would otherwise be ignored."""
        unknown = sorted(set(self._values) - set(known))
        if unknown:
            raise CheckpointError(f"{self.name} has the unknown field {unknown[0]!r}; known are {', '.join(known)}")

    def integer(self, key: str, default: int | None = None, *, least: int = 0, most: int = MAX_INTEGER) -> int:
        value = default if default is not None and not self.has(key) else self.raw(key)
        return as_integer(self.path(key), value, least, most)

    def integers(self, key: str, *, least: int = 0) -> tuple[int, ...]:
        """A list of integers; an absent one is empty."""
        return as_integers(self.path(key), self.raw(key), least) if self.has(key) else ()

    def positive(self, key: str, default: float | None = None) -> float:
        """A number above zero, of a size that can be calculated with."""
        value = default if default is not None and not self.has(key) else self.raw(key)
        if isinstance(value, bool) or not isinstance(value, int | float) or not _TINY <= value <= _HUGE:
            mismatch(self.path(key), value, f"a number from {_TINY} to {_HUGE}")
        return float(value)

    def boolean(self, key: str, default: bool) -> bool:
        value = self.raw(key) if self.has(key) else default
        if not isinstance(value, bool):
            mismatch(self.path(key), value, "true or false")
        return value

    def string(self, key: str) -> str:
        value = self.raw(key)
        if not isinstance(value, str):
            mismatch(self.path(key), value, "a string")
        return value

    def choice(self, key: str, choices: tuple[str, ...], default: str | None = None) -> str:
        value = default if default is not None and not self.has(key) else self.raw(key)
        if not isinstance(value, str) or value not in choices:
            mismatch(self.path(key), value, f"one of {', '.join(map(repr, choices))}")
        return value

    def object(self, key: str) -> Fields:
        """The object at `key`; an absent one is empty."""
        return Fields(self._values[key] if self.has(key) else {}, self.path(key))

    def path(self, key: str) -> str:
        """What an error calls the field: `xgr.json: event.begin`."""
        return f"{self.name}: {key}" if self.name.endswith(".json") else f"{self.name}.{key}"
