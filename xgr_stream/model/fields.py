"""Reading JSON that somebody else wrote: what does not fit raises `CheckpointError` with the field's full name, its
value and what was expected, and nothing else is ever raised."""

from __future__ import annotations

import json
import math
import reprlib
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from xgr_stream.errors import CheckpointError


def read_json(path: Path) -> object:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"cannot read {path} as JSON: {error}") from error


def mismatch(name: str, value: object, expected: str) -> NoReturn:
    raise CheckpointError(f"{name} must be {expected}, not {reprlib.repr(value)}")


def as_integer(name: str, value: object, least: int, most: int | None = None) -> int:
    # bool is a subclass of int, and `true` is no number here.
    if type(value) is not int or value < least or (most is not None and value > most):
        bounds = f"of at least {least}" if most is None else f"from {least} to {most}"
        mismatch(name, value, f"an integer {bounds}")
    return value


def as_integers(name: str, value: object, least: int, most: int | None = None) -> tuple[int, ...]:
    if not isinstance(value, list | tuple):
        mismatch(name, value, "a list of integers")
    return tuple(as_integer(f"{name}[{i}]", entry, least, most) for i, entry in enumerate(value))


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

    def integer(self, key: str, default: int | None = None, *, least: int = 0, most: int | None = None) -> int:
        if default is not None and not self.has(key):
            return default
        return as_integer(self._path(key), self.raw(key), least, most)

    def integers(self, key: str, *, least: int = 0, most: int | None = None) -> tuple[int, ...]:
        """A list of integers; an absent one is empty."""
        return as_integers(self._path(key), self.raw(key), least, most) if self.has(key) else ()

    def positive(self, key: str, default: float | None = None) -> float:
        """A finite number above zero."""
        if default is not None and not self.has(key):
            return default
        value = self.raw(key)
        if type(value) not in (int, float) or not 0 < value < math.inf:  # type: ignore[operator]
            mismatch(self._path(key), value, "a number above 0")
        return float(value)  # type: ignore[arg-type]

    def boolean(self, key: str, default: bool) -> bool:
        value = self.raw(key) if self.has(key) else default
        if not isinstance(value, bool):
            mismatch(self._path(key), value, "true or false")
        return value

    def choice(self, key: str, choices: tuple[str, ...], default: str | None = None) -> str:
        value = default if default is not None and not self.has(key) else self.raw(key)
        if not isinstance(value, str) or value not in choices:
            mismatch(self._path(key), value, f"one of {', '.join(map(repr, choices))}")
        return value

    def object(self, key: str) -> Fields:
        """The object at `key`; an absent one is empty."""
        return Fields(self._values[key] if self.has(key) else {}, self._path(key))

    def _path(self, key: str) -> str:
        return f"{self.name}: {key}" if self.name.endswith(".json") else f"{self.name}.{key}"
